"""The verbs of regression checks."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.options import AsJson

ReportFormat = Annotated[str, typer.Option("--format", help="text, md, json or junit.")]
ReportFolder = Annotated[
    Path | None,
    typer.Option("--out", file_okay=False, help="Folder for the report in every format, and its figure."),
]
Margin = Annotated[float, typer.Option(help="Share by which a time must have moved to count.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="End with exit code 4 where something is inconclusive.")
]

BaselineFolder = Annotated[
    Path,
    typer.Option("--folder", file_okay=False, help="Folder of baselines, one below it for each machine."),
]

_baseline = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Keep a window of accepted runs that later ones are compared with.",
    epilog="Example: retbench baseline save results/MACHINE/latency/RUN.jsonl",
)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    app.command(
        epilog="Example: retbench compare results/MACHINE/latency/BEFORE.jsonl results/MACHINE/latency/AFTER.jsonl"
    )(compare)
    app.command(epilog="Example: retbench check --against HEAD~1 --format md")(check)
    app.add_typer(_baseline, name="baseline")


def compare(
    first: Annotated[
        Path,
        typer.Argument(
            metavar="A", help="File or folder of records to compare with, or a baseline (*.json)."
        ),
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="File or folder of records that are judged.")],
    form: ReportFormat = "text",
    out: ReportFolder = None,
    margin: Margin = 0.02,
    accept_soft: Annotated[
        bool,
        typer.Option(
            "--accept-soft",
            help="Judge what has moved although the load, the clocks, the driver or the sitting differ.",
        ),
    ] = False,
    strict: Strict = False,
) -> None:
    """Compare two record sets of one machine, or a run with a baseline: is B slower than A?

    Exit code 1 where something is slower beyond the margin or failed, 3 where the sets differ in what they measured or
    a point is missing on one side, 4 under --strict where something is inconclusive.
    """
    from retbench.cli import compare as command

    shown = command.Shown(form, out, strict)
    raise typer.Exit(command.compare(first, second, shown, margin, accept_soft=accept_soft))


def check(
    against: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Time the checkout against this commit of it, in one sitting."),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="With --against: what is timed; by default latency.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="With --against: in which profile; by default smoke.")
    ] = None,
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
        int | None,
        typer.Option(help="With --against: rounds at most, repeats of what is flagged apart; by default 20."),
    ] = None,
    visits: Annotated[
        int | None,
        typer.Option(
            help="With --against: times that each cell is measured on both sides in a round, its steps shared out "
            "among them; by default 10."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="With --against: minutes after which no round is begun, repeats of what is flagged apart; by "
            "default 20."
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="With --against: share by which a time must have moved; by default 0.02."),
    ] = None,
    always: Annotated[
        bool,
        typer.Option("--always", help="With --against: time even where the code that measures is the same."),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Exact quantities to hold against; by default those that retbench comes with.",
        ),
    ] = None,
    form: ReportFormat = "text",
    out: ReportFolder = None,
    strict: Strict = False,
) -> None:
    """Check on any machine what does not depend on it; or, with --against, the times of a checkout.

    Without --against, in less than a minute: parameters, bytes of states, operations and bytes of a step, peak tensor
    bytes, the equality of all forms, the loss of a fixed text under fixed tiny weights, and greedy tokens. Exit code 1
    where one differs from what was accepted.

    With --against REF, rounds of the checkout and of that commit take turns until every point is decided or the budget
    ends, and what is flagged is measured anew. Exit code 1 where something is slower, 3 where the two do not measure
    the same, 4 under --strict where something is inconclusive.
    """
    from retbench.cli import check as command

    given = command.Given(
        experiment, profile, device, tuple(overrides or ()), rounds, visits, budget, margin, always, baseline
    )
    raise typer.Exit(command.check(against, given, form, out, strict=strict))


@_baseline.command(
    epilog="Example: retbench baseline save results/MACHINE/latency/MONDAY.jsonl results/MACHINE/latency/TUESDAY.jsonl"
)
def save(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Files or folders of records, each one run of the same sweep."),
    ],
    folder: BaselineFolder = Path("results/baselines"),
) -> None:
    """Add runs to the baseline of their machine and sweep, or begin one.

    A run that differs from the window in what it measured is refused with exit code 3, and one that has moved with exit
    code 1: where that was intended, `retbench baseline accept` begins the window anew.
    """
    from retbench.cli import baseline as command

    command.save(runs, folder)


@_baseline.command(
    epilog='Example: retbench baseline accept results/MACHINE/latency/RUN.jsonl --reason "chunk of 256"'
)
def accept(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="File or folder of records of the new state; or the word exact, for what `retbench check` measures.",
        ),
    ],
    reason: Annotated[str, typer.Option(help="What changed; kept in the baseline.")],
    folder: BaselineFolder = Path("results/baselines"),
) -> None:
    """Accept an intended change: the window begins anew with this run."""
    if str(run) == "exact":
        from retbench.cli import check as exact_command

        exact_command.accept_exact(reason, folder)
    else:
        from retbench.cli import baseline as command

        command.accept(run, reason, folder)


@_baseline.command(epilog="Example: retbench baseline show results/baselines")
def show(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A baseline, or a folder of them.")] = Path(
        "results/baselines"
    ),
    as_json: AsJson = False,
) -> None:
    """Show what baselines hold: runs, points, and how much the runs differ."""
    from retbench.cli import baseline as command

    command.show(path, as_json=as_json)
