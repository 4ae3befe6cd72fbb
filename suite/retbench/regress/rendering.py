"""A report as text: for a terminal, as Markdown for the summary of a job, and as JUnit XML."""

import json
from collections.abc import Sequence

import pandas as pd

from retbench.errors import unknown_name
from retbench.regress.items import Item
from retbench.regress.junit import Case, Outcome, junit_xml
from retbench.regress.rendering_report import NOT_COMPARABLE, Gap, Report, describe_ratio
from retbench.report.formats import escape_markdown, markdown_table
from retbench.stats.sequential import Decision
from retbench.units import format_bytes, format_percent, format_seconds

FORMATS = ("text", "md", "json", "junit")

HEADER = ("verdict", "what", "first", "second", "ratio", "rounds", "note")
_GAPS: dict[Gap, Outcome] = {
    "broken": "failure",
    "fixed": "skipped",
    "absent": "error",
    "both": "skipped",
}
_ORDER = ("regressed", "improved", "inconclusive", "same")


def render(report: Report, form: str, *, strict: bool) -> str:
    """A report in one of `FORMATS`.

    Raises:
        ConfigError: an unknown format.
    """
    match form:
        case "text":
            return to_text(report)
        case "md":
            return to_markdown(report)
        case "json":
            return (
                json.dumps(report.to_json(strict=strict), indent=2, ensure_ascii=False, allow_nan=False)
                + "\n"
            )
        case "junit":
            return to_junit(report, strict=strict)
        case _:
            raise unknown_name("format", form, FORMATS, where="--format")


def table_rows(report: Report) -> list[tuple[str, ...]]:
    """One row an item, what has moved first."""
    ordered = sorted(report.decisions.items(), key=lambda pair: _ORDER.index(pair[1].verdict))
    return [
        (
            decision.verdict,
            str(item),
            *_values(report, item),
            describe_ratio(decision.evidence) if decision.evidence else "–",
            str(decision.evidence.num_rounds) if decision.evidence else "0",
            describe_note(decision),
        )
        for item, decision in ordered
    ]


def _values(report: Report, item: Item) -> tuple[str, str]:
    """What an item was on both sides; of a curve there is no one value."""
    if item.kind == "curve":
        return "", ""
    found = [report.values.get(place) for place in item.places]
    if None in found:
        return "–", "–"
    sides = [[pair[side] for pair in found if pair] for side in (0, 1)]
    if item.kind == "ratio":
        return f"{sides[0][0] / sides[0][1]:.3f}", f"{sides[1][0] / sides[1][1]:.3f}"
    show = format_bytes if item.places[0].workload == "memory" else format_seconds
    return show(sides[0][0]), show(sides[1][0])


def describe_note(decision: Decision) -> str:
    """What else there is to say of a decision, and of an open one which slow-down would have been found."""
    parts = [decision.note] if decision.note else []
    if decision.detectable is not None and decision.detectable < 10:
        parts.append(f"{format_percent(decision.detectable)} or more would have been found")
    return "; ".join(parts)


def prose(report: Report) -> list[str]:
    """Everything beside the table, a line each, the outcome first."""
    lines = [report.headline, *report.sentences]
    lines += [f"differs: {difference}" for difference in report.hard]
    lines += [f"missing: {one}" for one in report.missing]
    lines += [f"may explain a difference: {difference}" for difference in report.soft]
    return [*lines, report.method, *(f"note: {note}" for note in report.notes)]


def to_text(report: Report) -> str:
    """For a terminal: the table in aligned columns that are never folded, then the rest."""
    table = align([HEADER, *table_rows(report)]) if report.decisions else []
    sides = [f"first:  {report.first}", f"second: {report.second}"]
    return "\n".join([*table, *([""] if table else []), *sides, *prose(report)]) + "\n"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of columns that are as wide as their longest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def to_markdown(report: Report) -> str:
    """For the summary of a job."""
    lines = [
        f"### retbench: {report.headline}",
        "",
        f"First: {report.first}  ",
        f"Second: {report.second}",
        "",
    ]
    if report.decisions:
        lines += [markdown_table(pd.DataFrame(table_rows(report), columns=list(HEADER))), ""]
    lines += [f"- {escape_markdown(line)}" for line in prose(report)[1:]]
    return "\n".join(lines) + "\n"


def to_junit(report: Report, *, strict: bool) -> str:
    """As JUnit XML: a case an item; regressed is a failure, what could not be compared an error."""
    regressions = report.regressions
    cases = []
    for item, decision in report.decisions.items():
        text = f"{describe_ratio(decision.evidence) if decision.evidence else 'no rounds'} {describe_note(decision)}"
        outcome: Outcome = "failure" if item in regressions else "passed"
        if decision.verdict == "inconclusive":
            outcome = "failure" if strict else "skipped"
        cases.append(Case(str(item), item.kind, outcome, f"{decision.verdict}: {text}".strip()))
    cases += [Case(str(one.place), "missing", _GAPS[one.kind], str(one)) for one in report.missing]
    cases += [Case(one.fact, "comparable", "error", str(one)) for one in report.hard]
    if report.exit_code(strict=strict) == NOT_COMPARABLE and not any(one.outcome == "error" for one in cases):
        cases.append(
            Case("the comparison", "comparable", "error", "; ".join([report.headline, *report.notes]))
        )
    return junit_xml(cases)
