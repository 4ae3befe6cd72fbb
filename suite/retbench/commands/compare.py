"""`retbench compare`: two record sets of one machine, or a stored history and one run."""

from dataclasses import dataclass
from pathlib import Path

import typer

from retbench.comparing.baseline import read_baseline
from retbench.comparing.compare import compare_sides
from retbench.comparing.history import compare_history
from retbench.comparing.rendering import FORMATS, render
from retbench.comparing.report import Report
from retbench.comparing.sequential import WITHOUT_REPEAT, Rules
from retbench.comparing.sides import load_side
from retbench.errors import StorageError, unknown_name


@dataclass(frozen=True)
class Shown:
    """How a report is shown.

    Attributes:
        form: On stdout: one of `rendering.FORMATS`.
        out: Folder for all of the formats and the figure; None for none.
        strict: Whether what is inconclusive counts.
    """

    form: str
    out: Path | None
    strict: bool

    def check(self) -> None:
        """ConfigError for an unknown format, before anything is measured."""
        if self.form not in FORMATS:
            raise unknown_name("format", self.form, FORMATS, where="--format")


def compare(first: Path, second: Path, shown: Shown, margin: float, *, accept_soft: bool) -> int:
    """Compare, print, and return the exit code.

    Args:
        first: Records, or a baseline where its name ends in .json.
        second: Records.
        shown: How the report is shown.
        margin: Share by which a time must have moved.
        accept_soft: Judge what has moved although soft facts differ.

    Raises:
        RecordError: a side holds nothing that can be compared.
        UnsupportedError: a baseline of a newer schema.
        ConfigError: an unknown format, or a margin that is no share.
    """
    shown.check()
    rules = Rules(margin, WITHOUT_REPEAT.floor_s, WITHOUT_REPEAT.flag_rate, confirm_rate=None)
    if first.suffix == ".json":
        baseline, side = read_baseline(first), load_side(second)
        return show_report(compare_history(str(first), baseline, side, rules, accept_soft=accept_soft), shown)
    sides = load_side(first), load_side(second)
    return show_report(compare_sides(*sides, rules, accept_soft=accept_soft), shown)


def show_report(report: Report, shown: Shown) -> int:
    """Print a report, write it where that was asked for, and return the exit code."""
    typer.echo(render(report, shown.form, strict=shown.strict), nl=False)
    if shown.out is not None:
        write_report(report, shown.out, strict=shown.strict)
    return report.exit_code(strict=shown.strict)


def write_report(report: Report, folder: Path, *, strict: bool) -> None:
    """Write a report in every format, and its figure; the paths go to stderr.

    Raises:
        StorageError: a file cannot be written.
    """
    names = {"md": "check.md", "json": "check.json", "junit": "junit.xml"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in names.values()]
        for form, path in zip(names, paths, strict=True):
            path.write_text(render(report, form, strict=strict), encoding="utf-8")
        if any(decision.evidence for decision in report.decisions.values()):
            from retbench.analysis.style import save_figure  # matplotlib takes longer than the comparison
            from retbench.comparing.figure import draw_ratios

            paths += save_figure(draw_ratios(report), folder / "ratios")
    except OSError as error:
        raise StorageError(
            f"{folder}: the report cannot be written: {error.strerror}. Give another folder with --out."
        ) from error
    for path in paths:
        typer.echo(path, err=True)
