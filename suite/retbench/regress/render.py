"""Rendering of a check report: text for a terminal, Markdown for a job's summary, JSON, JUnit XML, and a figure."""

import json
import textwrap
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from retbench.errors import printable
from retbench.files import storing, write_atomic
from retbench.regress.report import NOT_COMPARABLE, VERDICTS, CheckReport, DecidedItem, Gap, Outcome
from retbench.report.tables.aligned_text import align_columns
from retbench.report.tables.markdown import escape_markdown, markdown_rows
from retbench.stats.intervals import Interval

FORMATS = ("text", "md", "json", "junit")
_GAPS: dict[Gap, Outcome] = {"broken": "failure", "fixed": "skipped", "absent": "error", "both": "skipped"}
_TIME_FILES = {"md": "check.md", "json": "check.json", "junit": "junit.xml"}
_QUANTITY_FILES = {"md": "exact.md", "json": "exact-report.json", "junit": "exact-junit.xml"}


def render(report: CheckReport, form: str, *, strict: bool, width: int | None = None) -> str:
    """Return a report in one of `FORMATS`; text in lines of `width` characters, or in lines that are never folded."""
    match form:
        case "md":
            return _to_markdown(report)
        case "json":
            return _to_json(report, strict=strict)
        case "junit":
            return _to_junit(report, strict=strict)
        case _:
            return _to_text(report, width)


def describe_ratio(ratio: Interval) -> str:
    """Return a ratio with its interval: '1.120 [1.090, 1.150]'."""
    ends = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{ratio.value:.3f}{ends}"


def _columns(report: CheckReport) -> tuple[str, ...]:
    sides = ("accepted", "measured") if report.quantities else ("first", "second")
    return ("verdict", "item", *sides, "ratio", "rounds", "note")


def _row(item: DecidedItem) -> tuple[str, ...]:
    ratio = ("", "") if item.change is None else (describe_ratio(item.change), str(item.change.num_rounds))
    return (item.verdict, item.name, item.first, item.second, *ratio, item.note)


def _table(report: CheckReport) -> list[tuple[str, ...]]:
    """Return a header and one row per item, regressions first, without empty columns and equal quantities."""
    shown = [item for item in report.items if item.verdict != "equal"]
    rows = [_row(item) for item in sorted(shown, key=lambda item: VERDICTS.index(item.verdict))]
    header = _columns(report)
    used = [index for index in range(len(header)) if any(row[index] for row in rows)]
    return [tuple(printable(row[index]) for index in used) for row in (header, *rows)] if rows else []


def _prose(report: CheckReport) -> list[str]:
    """Return everything but the table and the sides, one line each, the outcome first."""
    lines = [report.headline, *report.sentences]
    lines += [f"differs: {difference}" for difference in report.comparability_keys]
    lines += [f"missing: {one}" for one in report.missing]
    lines += [f"may explain a difference: {difference}" for difference in report.confounders]
    lines += [report.method, *(f"note: {note}" for note in report.notes)]
    return [printable(line) for line in lines]


def _to_text(report: CheckReport, width: int | None) -> str:
    """Return aligned columns, then the rest."""
    header, *rows = _table(report) or [()]
    lines = align_columns(header, rows, width, keys=2)
    sides = [f"first:  {printable(report.first)}", f"second: {printable(report.second)}"]
    prose = [*sides, *_prose(report)]
    if width is not None:
        prose = [textwrap.fill(line, width, break_on_hyphens=False) for line in prose]
    return "\n".join([*lines, *([""] if lines else []), *prose]) + "\n"


def _to_markdown(report: CheckReport) -> str:
    first, second = (escape_markdown(printable(side)) for side in (report.first, report.second))
    lines = [f"### retbench: {report.headline}", "", f"First: {first}  ", f"Second: {second}", ""]
    if rows := _table(report):
        lines += [markdown_rows(rows[0], rows[1:]), ""]
    lines += [f"- {escape_markdown(line)}" for line in _prose(report)[1:]]
    return "\n".join(lines) + "\n"


def _to_json(report: CheckReport, *, strict: bool) -> str:
    data = report.to_json(strict=strict)
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _cases(report: CheckReport, *, strict: bool) -> list[tuple[str, str, Outcome, str]]:
    """Return name, kind, outcome and message of every item, missing point and differing comparability key."""
    cases: list[tuple[str, str, Outcome, str]] = []
    for item in report.items:
        entries = zip(_columns(report)[2:], _row(item)[2:], strict=True)
        message = ", ".join(f"{heading} {text}" for heading, text in entries if text)
        outcome = "failure" if strict and item.outcome == "skipped" else item.outcome
        cases.append((item.name, item.kind, outcome, f"{item.verdict}: {message}"))
    cases += [(str(one.point), "missing", _GAPS[one.kind], str(one)) for one in report.missing]
    cases += [(one.fact, "comparable", "error", str(one)) for one in report.comparability_keys]
    if report.exit_code(strict=strict) == NOT_COMPARABLE and all(
        outcome != "error" for *_, outcome, _ in cases
    ):
        message = "; ".join([report.headline, *report.notes])
        cases.append(("the comparison", "comparable", "error", message))
    return cases


def _to_junit(report: CheckReport, *, strict: bool) -> str:
    """Return JUnit XML: a regression is a failure, and an item that could not be compared is an error."""
    cases = _cases(report, strict=strict)
    suite = ElementTree.Element("testsuite", name="retbench", tests=str(len(cases)))
    counts = Counter(outcome for *_, outcome, _ in cases)
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("skipped", str(counts["skipped"]))
    for name, kind, outcome, message in cases:
        case = ElementTree.SubElement(suite, "testcase", name=printable(name), classname=f"retbench.{kind}")
        if outcome != "passed":
            ElementTree.SubElement(case, outcome, message=printable(message))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def write_report(report: CheckReport, folder: Path, *, strict: bool) -> list[Path]:
    """Write a report in every format, with a figure of its ratios, and return the paths.

    A report of times without ratios removes the figure of an earlier one.

    Raises:
        StorageError: the folder cannot be written.
    """
    paths = []
    for form, name in (_QUANTITY_FILES if report.quantities else _TIME_FILES).items():
        paths.append(folder / name)
        write_atomic(paths[-1], render(report, form, strict=strict).encode())
    if any(item.change for item in report.items):
        from retbench.regress.figure import draw_ratios
        from retbench.report.figures.drawing import (
            save_figure,  # matplotlib loads slower than a comparison takes
        )

        paths += save_figure(draw_ratios(report), folder / "ratios")
    elif not report.quantities:
        for figure in (folder / "ratios.svg", folder / "ratios.png"):
            with storing(figure):
                figure.unlink(missing_ok=True)
    return paths
