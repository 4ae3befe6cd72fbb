"""`retbench compare-commands`: is the second of two shell commands slower than the first?"""

from typing import Annotated

import typer

from retbench.cli.compare import (
    Margin,
    ReportFolder,
    ReportFormat,
    Strict,
    check_output,
    ended_by_user,
    notify,
    print_report,
)
from retbench.cli.options import AsJson, new_app

app = new_app()


@app.command(epilog='Example: retbench compare-commands "old/bin/tool data" "new/bin/tool data"')
def compare_commands(
    first: Annotated[str, typer.Argument(metavar="A", help="Command to compare with, as `sh -c` takes it.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Command that is judged.")],
    form: ReportFormat = None,
    as_json: AsJson = False,
    out: ReportFolder = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", help="Maximum rounds, without repeats of a flagged change.")
    ] = 40,
    pairs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Runs of each command per round; by default 1 to 10, to fill about 2 s."
        ),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(
            metavar="MINUTES", help="Time after which no round begins but those of a flagged change."
        ),
    ] = 20.0,
    margin: Margin = 0.02,
    strict: Strict = False,
) -> None:
    """Compare the wall time of two shell commands: is B slower than A?

    The two run in turn until it is decided, or the rounds or the time are over. A flagged change is measured again.
    Both must end with exit code 0. Their stdout is discarded; their stderr goes to a temporary file, whose end is shown
    if one fails. If you interrupt it, the report has the rounds so far.

    Exit code 1: B is slower beyond the margin, or fails. 3: A fails, or nothing could be compared. 4, under --strict:
    inconclusive.
    """
    from retbench.regress.commands import PairLimits
    from retbench.regress.commands import compare_commands as compare
    from retbench.stats.sequential import DecisionRules

    form = check_output(form, out, as_json=as_json)
    limits = PairLimits(max_rounds=rounds, pairs=pairs, budget_s=60 * budget)
    rules = DecisionRules(margin=margin)
    with ended_by_user("nothing was decided"):
        report = compare(first, second, limits, rules, notify)
    print_report(report, form, out, strict=strict)
