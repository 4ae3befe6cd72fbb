"""`retbench claims`: the papers' claims tested on the records on disk, without torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.layout import output_format, print_json, print_prose, print_table, terminal_width
from retbench.cli.options import AsJson, ResultsPath, format_option, given_options, new_app
from retbench.cli.table import read_results
from retbench.errors import shown

if TYPE_CHECKING:
    from retbench.report.claims.judged import JudgedClaim

app = new_app()
FORMATS = ("text", "md", "short", "json")
WIDE = 120
"""Characters of a terminal that has room for the paper's number and its conditions."""


@app.command(epilog="Example: retbench claims --format md")
def claims(
    call: typer.Context,
    form: Annotated[str | None, format_option(*FORMATS)] = None,
    as_json: AsJson = False,
    results: ResultsPath = Path("results"),
) -> None:
    """Print the papers' claims, each with the paper's number, the one measured here and the verdict.

    Only records under a paper's own conditions decide a claim. `md` adds all evidence; `short` is a Markdown table of a
    few claims.
    """
    from retbench.report.claims.judge import judge_claims
    from retbench.report.claims.tables import claims_json, claims_markdown, headlines_markdown
    from retbench.report.results import Results

    form = output_format(form, FORMATS, as_json=as_json)
    if results.exists() or "--results" in given_options(call):
        found = read_results(results)
    else:
        typer.echo(f"retbench: no results at {shown(str(results))}: no claim is tested", err=True)
        found = Results((), ())
    judged = judge_claims(found)
    if form == "json":
        print_json({"claims": claims_json(judged)})
    elif form == "text":
        _print_text(judged)
    else:
        typer.echo(headlines_markdown(judged) if form == "short" else claims_markdown(judged), nl=False)


def _print_text(judged: "list[JudgedClaim]") -> None:
    """Print the counts, then per group what a verdict needs, and the claims that records bear on."""
    from retbench.report.claims.tables import claim_table, make_claim_section

    section = make_claim_section(judged)
    print_prose(section.counts)
    for group in section.groups:
        typer.echo()
        print_prose(group.heading)
        if group.needed:
            print_prose(group.needed)
        if group.shown:
            frame = claim_table(group.shown)
            if (terminal_width() or WIDE) < WIDE:  # the claim states the number
                frame = frame.drop(columns="paper")
            print_table(list(frame.columns), frame.to_numpy().tolist(), "text")
    typer.echo()
    print_prose("`retbench claims --format md` prints every claim, and the evidence with its conditions.")
