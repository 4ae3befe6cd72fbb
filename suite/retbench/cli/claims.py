"""`retbench claims`: what the records on disk say of the papers' claims, without torch."""

from pathlib import Path

import typer

from retbench.cli.layout import print_json
from retbench.errors import unknown_name
from retbench.report.claim_tables import claims_json, claims_markdown, headlines_markdown
from retbench.report.claims import judge_claims
from retbench.report.frames import Results, load_results

FORMATS = ("md", "short", "json")


def print_claims(form: str, results: Path) -> None:
    """Print every claim, or the headlines; where there are no results at all, what each of them needs.

    Raises:
        ConfigError: an unknown format.
        RecordError: there are records, and none of them can be read.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS, where="--format")
    judged = judge_claims(_load(results))
    if form == "json":
        print_json({"claims": claims_json(judged)})
    else:
        typer.echo(headlines_markdown(judged) if form == "short" else claims_markdown(judged), nl=False)


def _load(results: Path) -> Results:
    """The records of a folder, none where there is no such folder; on stderr, what could not be read."""
    if not results.exists():
        typer.echo(f"retbench: no results at '{results}': no claim is tested", err=True)
        return Results((), ())
    found = load_results(results)
    for problem in found.problems:
        typer.echo(f"retbench: {problem}", err=True)
    return found
