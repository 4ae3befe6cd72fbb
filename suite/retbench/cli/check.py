"""`retbench check`: machine-independent quantities, or the times of a checkout against one of its commits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.compare import ReportFolder, ReportFormat, Strict, print_report
from retbench.cli.options import new_app

if TYPE_CHECKING:
    from retbench.regress.interleaved import InterleavedCheck
    from retbench.regress.machine_independent import Quantities
    from retbench.regress.report import CheckReport

app = new_app()
DEFAULT_OUT = Path("reports") / "check"
_TIMING = {"overrides": "set"} | {
    name: name
    for name in ("experiment", "profile", "device", "rounds", "visits", "budget", "margin", "always")
}
"""Options that need --against, by parameter."""


@app.command(epilog="Example: retbench check --against HEAD~1 --format md")
def check(
    ctx: typer.Context,
    against: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Time the checkout against this commit of it, in one session."),
    ] = None,
    experiment: Annotated[str, typer.Option(help="With --against: what is timed.")] = "latency",
    profile: Annotated[str, typer.Option(help="With --against: in which profile.")] = "smoke",
    device: Annotated[
        str | None,
        typer.Option(help="With --against: cpu, cuda or cuda:N; by default the first GPU, else the CPU."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="With --against: replace a field, as of `retbench run`."
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="With --against: maximum rounds, without repeats of flagged items.")
    ] = 20,
    visits: Annotated[
        int,
        typer.Option(
            help="With --against: sample blocks per cell and side in a round; they divide its steps."
        ),
    ] = 10,
    budget: Annotated[
        float,
        typer.Option(
            help="With --against: minutes after which no round begins; flagged items are repeated anyway."
        ),
    ] = 20.0,
    margin: Annotated[
        float, typer.Option(help="With --against: share by which a time must have moved to count.")
    ] = 0.02,
    always: Annotated[
        bool,
        typer.Option("--always", help="With --against: time even if the code that measures is the same."),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Accepted quantities; by default those shipped with retbench."),
    ] = None,
    form: ReportFormat = "text",
    out: ReportFolder = None,
    strict: Strict = False,
) -> None:
    """Check machine-independent quantities; with --against, the times of a checkout.

    Without --against, in less than a minute: parameters, state bytes, operations and bytes of a step, peak tensor
    bytes, the equivalence of all execution modes, the loss of a fixed text under fixed small weights, and greedy
    tokens. Exit code 1 if one differs from the accepted value.

    With --against REF, rounds of the checkout and of that commit alternate until every point is decided or the budget
    ends. Flagged items are measured again. Exit code 1 if a time is longer, 3 if the two do not measure the same, 4
    under --strict if an item is inconclusive.
    """
    from retbench.errors import ConfigError
    from retbench.regress.render import check_output

    check_output(form, out)
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if against is None:
        for option in (_TIMING[name] for name in given if name in _TIMING):
            raise ConfigError(
                f"--{option} says what is timed, and without --against REF nothing is. Give --against, or leave it out."
            )
        report = _check_quantities(baseline)
    else:
        if baseline is not None:
            raise ConfigError("--baseline holds quantities, and --against compares times. Give one of them.")
        from retbench.files import check_writable
        from retbench.planning.plan import make_plan
        from retbench.regress.interleaved import InterleavedCheck
        from retbench.regress.session import SessionLimits
        from retbench.stats.sequential import DecisionRules

        limits, rules = SessionLimits(rounds, visits, 60 * budget), DecisionRules(margin=margin)
        plan = make_plan(
            experiment, profile=profile, device=device, dtype=None, limit=None, overrides=overrides or ()
        )
        folder = (out or DEFAULT_OUT) / "records"
        check_writable(folder, "--out")
        report = _check_times(InterleavedCheck(plan, folder, _notify, limits, rules), against, always=always)
    print_report(report, form, out, strict=strict)


def _notify(text: str) -> None:
    typer.echo(text, err=True)


def _check_times(check: "InterleavedCheck", ref: str, *, always: bool) -> "CheckReport":
    """Measure both revisions; exit with 130 if the user interrupts it."""
    from retbench.errors import INTERRUPTED
    from retbench.run.locks import Interrupted

    try:
        return check.against(ref, always=always)
    except Interrupted:
        _notify("retbench: interrupted; the records of both sides are kept")
        raise typer.Exit(INTERRUPTED) from None


def _check_quantities(baseline: Path | None) -> "CheckReport":
    """Measure the machine-independent quantities and compare them with the accepted ones."""
    from retbench.regress.machine_independent import compare_quantities, read_quantities, shipped_path

    path = baseline or shipped_path()
    accepted = read_quantities(path)
    quantities, torch_version = measured_quantities()
    return compare_quantities(str(path), accepted, quantities, torch_version)


def measured_quantities() -> "tuple[Quantities, str]":
    """Measure the machine-independent quantities; return them with the version of torch."""
    import torch

    from retbench.architectures.registry import named_specs
    from retbench.regress.quantities import measure_quantities

    return measure_quantities(named_specs()), torch.__version__
