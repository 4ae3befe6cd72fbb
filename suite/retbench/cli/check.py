"""`retbench check`: exact quantities against those accepted, or the times of a checkout against a commit of it."""

from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path

import typer

from retbench.cli.baseline import EXACT, check_reason
from retbench.cli.compare import Shown, show, show_report
from retbench.cli.in_process import named_models
from retbench.errors import INTERRUPTED, ConfigError
from retbench.files import check_writable
from retbench.planning.plan import make_plan
from retbench.regress import against
from retbench.regress.exact import compare_exact, read_exact, write_exact
from retbench.regress.exact_rendering import ExactReport
from retbench.regress.sitting import VISITS, Limits
from retbench.run.locks import Interrupted
from retbench.stats.sequential import Rules, plan_looks

DEFAULT_OUT = Path("reports") / "check"
"""Where the records of both sides go unless another folder is named."""
DEFAULT_ROUNDS = 20
DEFAULT_BUDGET_MIN = 20.0


def check_exact(baseline: Path | None, shown: Shown) -> int:
    """Measure the exact quantities, compare, print, and return the exit code.

    Raises:
        RecordError: the baseline is not there, damaged or edited.
        ConfigError: an unknown format.
        StorageError: the report cannot be written.
    """
    path = baseline or shipped_baseline()
    accepted = read_exact(path)

    import torch

    from retbench.regress.quantities import measure_exact

    findings = compare_exact(accepted, measure_exact(named_models()), torch.__version__)
    report = ExactReport(f"{path} (torch {accepted.torch_version}: {accepted.reason})", tuple(findings))
    names = {"md": "exact.md", "json": "exact-report.json", "junit": "exact-junit.xml"}
    show(lambda form: report.render(form, strict=shown.strict), shown, names)
    return report.exit_code(strict=shown.strict)


def shipped_baseline() -> Path:
    """The quantities that retbench comes with: in the installed wheel, or in `results/baselines` of the checkout."""
    package = Path(str(resources.files("retbench")))
    packaged = package / "baselines" / EXACT
    return packaged if packaged.is_file() else package.parents[1] / "results" / "baselines" / EXACT


def accept_exact(reason: str, folder: Path) -> None:
    """Measure the exact quantities and accept them, and print the path.

    Raises:
        ConfigError: no reason is given, or the folder cannot be written to.
        StorageError: they cannot be written.
    """
    reason = check_reason(reason)
    check_writable(folder, "--folder")

    import torch

    from retbench.regress.quantities import measure_exact

    path = folder / EXACT
    write_exact(path, measure_exact(named_models()), torch.__version__, reason)
    typer.echo(path)


@dataclass(frozen=True)
class Given:
    """The options that only one of the two lanes has; None where not given."""

    experiment: str | None
    profile: str | None
    device: str | None
    overrides: tuple[str, ...]
    rounds: int | None
    visits: int | None
    budget: float | None
    margin: float | None
    always: bool
    baseline: Path | None


def check(ref: str | None, given: Given, form: str, out: Path | None, *, strict: bool) -> int:
    """Run the lane that is asked for, and return the exit code.

    Raises:
        ConfigError: the request is impossible, or an option belongs to the other lane.
        RetbenchError: what the lanes raise.
    """
    shown = Shown(form, out, strict)
    shown.check()
    if ref is not None:
        if given.baseline is not None:
            raise ConfigError(
                "--baseline holds exact quantities, and --against compares times. Give one of them."
            )
        return check_against(ref, given, shown)
    for field in fields(given):
        value = getattr(given, field.name)
        if field.name != "baseline" and value is not None and value is not False and value != ():
            name = "set" if field.name == "overrides" else field.name
            raise ConfigError(
                f"--{name} says what is timed, and without --against REF nothing is. Give --against, or leave it out."
            )
    return check_exact(given.baseline, shown)


def check_against(ref: str, given: Given, shown: Shown) -> int:
    """Compare the checkout with one of its commits, print, and return the exit code.

    Raises:
        ConfigError: the request is impossible.
        RetbenchError: what `checking.against.check_against` raises.
    """
    budget_min = DEFAULT_BUDGET_MIN if given.budget is None else given.budget
    limits = Limits(VISITS if given.visits is None else given.visits, 60 * budget_min)
    rounds = DEFAULT_ROUNDS if given.rounds is None else given.rounds
    plan_looks(rounds)  # so few that nothing can be said are refused here
    rules = Rules() if given.margin is None else Rules(margin=given.margin)
    plan = make_plan(
        given.experiment or "latency",
        profile=given.profile or "smoke",
        device=given.device,
        dtype=None,
        limit=None,
        overrides=given.overrides,
    )
    folder = (shown.out or DEFAULT_OUT) / "records"
    check_writable(folder, "--out")
    request = against.Request(plan, ref, rules, rounds, limits, given.always, folder)
    try:
        report = against.check_against(request, talk=lambda text: typer.echo(text, err=True))
    except Interrupted:
        typer.echo("retbench: interrupted; the records of both sides are kept", err=True)
        return INTERRUPTED
    return show_report(report, shown)
