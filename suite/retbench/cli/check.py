"""`retbench check`: machine-independent quantities, or the times of a checkout against one of its commits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli.compare import (
    ReportFolder,
    ReportFormat,
    Strict,
    check_output,
    ended_by_user,
    notify,
    print_report,
)
from retbench.cli.options import (
    DEVICES,
    AsJson,
    complete_experiment,
    complete_profile,
    given_options,
    new_app,
    not_empty,
    read_file,
)

if TYPE_CHECKING:
    from retbench.regress.interleaved import InterleavedCheck
    from retbench.regress.machine_independent import Quantities
    from retbench.regress.report import CheckReport

app = new_app()
DEFAULT_OUT = Path("reports") / "check"


_TIMING_OPTIONS: set[str] = set()
"""Names of the options that need --against."""


def _timing(name: str, help: str, **settings: Any) -> Any:
    """Return an option that needs --against, and keep its name."""
    _TIMING_OPTIONS.add(name)
    return typer.Option(name, help=f"With --against: {help}", **settings)


Reference = Annotated[
    str | None,
    typer.Option(metavar="REF", help="Time the checkout against this commit of it, in one session."),
]
Overrides = Annotated[
    list[str] | None, _timing("--set", "replace a field, as of `retbench run`.", metavar="KEY=VALUE")
]
QuantitiesFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        parser=read_file,
        help="Accepted quantities; by default those shipped with retbench.",
    ),
]


@app.command(epilog="Example: retbench check --against HEAD~1 --format md")
def check(
    call: typer.Context,
    against: Reference = None,
    experiment: Annotated[
        str,
        _timing("--experiment", "what is timed.", metavar="EXPERIMENT", autocompletion=complete_experiment),
    ] = "latency",
    profile: Annotated[
        str,
        _timing(
            "--profile",
            "in which profile.",
            metavar="PROFILE",
            callback=not_empty,
            autocompletion=complete_profile,
        ),
    ] = "smoke",
    device: Annotated[
        str | None, _timing("--device", "by default the first GPU, else the CPU.", metavar=DEVICES)
    ] = None,
    overrides: Overrides = None,
    rounds: Annotated[
        int, _timing("--rounds", "maximum rounds, without repeats of flagged items.", metavar="N")
    ] = 20,
    blocks: Annotated[
        int,
        _timing(
            "--blocks", "sample blocks per cell and side in a round; they divide its steps.", metavar="N"
        ),
    ] = 10,
    budget: Annotated[
        float,
        _timing(
            "--budget", "time after which no round begins but those of flagged items.", metavar="MINUTES"
        ),
    ] = 20.0,
    margin: Annotated[
        float, _timing("--margin", "share by which a time must have moved to count.", metavar="SHARE")
    ] = 0.02,
    always: Annotated[bool, _timing("--always", "time even if the code that measures is the same.")] = False,
    all_points: Annotated[bool, _timing("--all-points", "go on though the exit code is settled.")] = False,
    baseline: QuantitiesFile = None,
    form: ReportFormat = None,
    as_json: AsJson = False,
    out: ReportFolder = None,
    strict: Strict = False,
) -> None:
    """Check machine-independent quantities; with --against, the times of a checkout.

    Without --against, in less than a minute: parameters, state bytes, operations and bytes of a step, peak tensor
    bytes, the equivalence of all execution modes, the loss of a fixed text under fixed small weights, and greedy
    tokens. Exit code 1 if one differs from the accepted value.

    With --against REF, whose code runs here, rounds of the checkout and of that commit alternate until every point is
    decided, no further round can change the exit code, or the budget ends. Flagged items are measured again. Exit code
    1 if a time is longer, 3 if the two do not measure the same, 4 under --strict if an item is inconclusive.
    """
    from retbench.planning.plan import make_plan
    from retbench.regress.interleaved import InterleavedCheck
    from retbench.regress.session import SessionLimits
    from retbench.stats.sequential import DecisionRules

    form = check_output(form, out, as_json=as_json)
    _check_options(call, against, baseline)
    if against is None:
        report = _check_quantities(baseline)
    else:
        limits = SessionLimits(max_rounds=rounds, blocks=blocks, budget_s=60 * budget)
        rules = DecisionRules(margin=margin)
        plan = make_plan(experiment, profile=profile, device=device, overrides=overrides or ())
        folder = (out or DEFAULT_OUT) / "records"
        timed = InterleavedCheck(plan, folder, notify, limits, rules, strict, all_points)
        report = _check_times(timed, against, always=always)
    print_report(report, form, out, strict=strict)


def _check_options(call: typer.Context, against: str | None, baseline: Path | None) -> None:
    """Raise ConfigError for options of the other kind of check."""
    from retbench.errors import ConfigError

    if against is not None and baseline is not None:
        raise ConfigError("--baseline holds quantities, and --against compares times. Give one of them.")
    for option in given_options(call):
        if against is None and option in _TIMING_OPTIONS:
            raise ConfigError(
                f"{option} says what is timed, and without --against REF nothing is. Give --against, or leave it out."
            )


def _check_times(check: "InterleavedCheck", ref: str, *, always: bool) -> "CheckReport":
    """Measure both revisions; exit with 130 if the user interrupts it."""
    from retbench.files import check_writable
    from retbench.measure.environment import check_compiled_code

    check_writable(check.folder, "--out")
    if check.plan.settings.compile:
        check_compiled_code()
    with ended_by_user("the records of both sides are kept"):
        return check.against(ref, always=always)


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
