"""`retbench claims`: the papers' claims tested on the records on disk, without torch."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.layout import print_json
from retbench.cli.options import ResultsPath, new_app
from retbench.cli.table import read_results
from retbench.errors import shown, unknown_name

app = new_app()
FORMATS = ("md", "short", "json")


@app.command(epilog="Example: retbench claims --format md")
def claims(
    form: Annotated[
        str, typer.Option("--format", help="md, json, or short: a Markdown table of the headlines.")
    ] = "md",
    results: ResultsPath = Path("results"),
) -> None:
    """Print the papers' claims, each with its verdict or what it still needs.

    Only records under a paper's own conditions decide a claim; all others are shown in rows of their own.
    """
    from retbench.report.claim_tables import claims_json, claims_markdown, headlines_markdown
    from retbench.report.claims import judge_claims
    from retbench.report.frames import Results

    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS, where="--format")
    if results.exists():
        found = read_results(results)
    else:
        typer.echo(f"retbench: no results at {shown(str(results))}: no claim is tested", err=True)
        found = Results((), ())
    judged = judge_claims(found)
    if form == "json":
        print_json({"claims": claims_json(judged)})
    else:
        typer.echo(headlines_markdown(judged) if form == "short" else claims_markdown(judged), nl=False)
