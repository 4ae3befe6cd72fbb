"""`retbench check`: what must be equal on any machine, against the quantities that were accepted."""

from importlib import resources
from pathlib import Path

import typer

from retbench.commands.baseline import check_reason
from retbench.commands.compare import Shown
from retbench.commands.listing import named_models
from retbench.comparing.exact import compare_exact, read_exact, write_exact
from retbench.comparing.exact_rendering import ExactReport
from retbench.errors import StorageError

EXACT = "exact.json"


def check_exact(baseline: Path | None, form: str, out: Path | None, *, strict: bool) -> int:
    """Measure the exact quantities, compare, print, and return the exit code.

    Raises:
        RecordError: the baseline is not there, damaged or edited.
        ConfigError: an unknown format.
        StorageError: the report cannot be written.
    """
    Shown(form, out, strict).check()
    path = baseline or shipped_baseline()
    accepted = read_exact(path)

    import torch

    from retbench.checking.exact import measure_exact

    findings = compare_exact(accepted, measure_exact(named_models()), torch.__version__)
    report = ExactReport(f"{path} (torch {accepted.torch_version}: {accepted.reason})", tuple(findings))
    typer.echo(report.render(form, strict=strict), nl=False)
    if out is not None:
        _write(report, out, strict=strict)
    return report.exit_code(strict=strict)


def shipped_baseline() -> Path:
    """The quantities that retbench comes with: in the installed wheel, or in `results/baselines` of the checkout."""
    package = Path(str(resources.files("retbench")))
    packaged = package / "baselines" / EXACT
    return packaged if packaged.is_file() else package.parents[1] / "results" / "baselines" / EXACT


def accept_exact(reason: str, folder: Path) -> None:
    """Measure the exact quantities and accept them, and print the path.

    Raises:
        ConfigError: no reason is given.
        StorageError: they cannot be written.
    """
    reason = check_reason(reason)

    import torch

    from retbench.checking.exact import measure_exact

    path = folder / EXACT
    write_exact(path, measure_exact(named_models()), torch.__version__, reason)
    typer.echo(path)


def _write(report: ExactReport, folder: Path, *, strict: bool) -> None:
    """Write the report in the formats that are read elsewhere."""
    names = {"md": "exact.md", "json": "exact-report.json", "junit": "exact-junit.xml"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form, name in names.items():
            (folder / name).write_text(report.render(form, strict=strict), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{folder}: the report cannot be written: {error.strerror}. Give another folder with --out."
        ) from error
