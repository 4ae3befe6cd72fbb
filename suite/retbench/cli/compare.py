"""`retbench compare`: two record sets of one machine, or a stored history and one run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from retbench.errors import ConfigError, StorageError, unknown_name
from retbench.files import check_writable
from retbench.regress.baseline import read_baseline
from retbench.regress.compare import compare_sides
from retbench.regress.history import compare_history
from retbench.regress.rendering import FORMATS, render
from retbench.regress.rendering_report import Report
from retbench.regress.sides import load_side
from retbench.stats.sequential import WITHOUT_REPEAT, Rules


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
        """ConfigError for an unknown format or a folder that cannot be written to, before anything is measured."""
        if self.form not in FORMATS:
            raise unknown_name("format", self.form, FORMATS, where="--format")
        if self.out is not None:
            check_writable(self.out, "--out")


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
        ConfigError: an unknown format, a folder that cannot be written to, a margin that is no share, or a baseline in
            the place of the run.
    """
    shown.check()
    _check_order(first, second)
    rules = Rules(margin, WITHOUT_REPEAT.floor_s, WITHOUT_REPEAT.flag_rate, confirm_rate=None)
    if first.suffix == ".json":
        baseline, side = read_baseline(first), load_side(second)
        return show_report(compare_history(str(first), baseline, side, rules, accept_soft=accept_soft), shown)
    sides = load_side(first), load_side(second)
    return show_report(compare_sides(*sides, rules, accept_soft=accept_soft), shown)


def _check_order(first: Path, second: Path) -> None:
    """ConfigError where what is judged is a baseline."""
    if second.suffix != ".json" or not second.is_file():
        return
    read_baseline(second)
    cure = (
        "Give the records of a run in its place."
        if first.suffix == ".json"
        else f"Give it first: `retbench compare {second} {first}`."
    )
    raise ConfigError(
        f"{second}: a baseline, which runs are compared with, and it was given as the run. {cure}"
    )


def show_report(report: Report, shown: Shown) -> int:
    """Print a report, write it with its figure where that was asked for, and return the exit code."""

    def draw(folder: Path) -> list[Path]:
        from retbench.regress.figure import draw_ratios
        from retbench.report.style import save_figure  # matplotlib takes longer than the comparison

        return save_figure(draw_ratios(report), folder / "ratios")

    has_ratios = any(decision.evidence for decision in report.decisions.values())
    names = {"md": "check.md", "json": "check.json", "junit": "junit.xml"}
    show(lambda form: render(report, form, strict=shown.strict), shown, names, draw if has_ratios else None)
    return report.exit_code(strict=shown.strict)


def show(
    text_in: Callable[[str], str],
    shown: Shown,
    names: Mapping[str, str],
    draw: Callable[[Path], list[Path]] | None = None,
) -> None:
    """Print a report, and write it where that was asked for; the paths go to stderr.

    Args:
        text_in: Gives the report in a format.
        shown: How it is shown.
        names: Of the file of each format that is written.
        draw: Writes its figure into a folder.

    Raises:
        StorageError: a file cannot be written.
    """
    typer.echo(text_in(shown.form), nl=False)
    folder = shown.out
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form, name in names.items():
            (folder / name).write_text(text_in(form), encoding="utf-8")
        paths = [folder / name for name in names.values()] + (draw(folder) if draw else [])
    except OSError as error:
        raise StorageError(
            f"{folder}: the report cannot be written: {error.strerror}. Give another folder with --out."
        ) from error
    for path in paths:
        typer.echo(path, err=True)
