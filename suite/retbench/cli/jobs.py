"""`retbench jobs`: what was submitted to a cluster, and the state of each job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.layout import output_format, print_json, print_prose, print_table
from retbench.cli.options import AsJson, OutputFormat, given_options, new_app, read_folder
from retbench.errors import RetbenchError

if TYPE_CHECKING:
    from retbench.running.submission import JobRow

app = new_app()


@app.command(epilog="Example: retbench jobs --out results")
def jobs(
    call: typer.Context,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", parser=read_folder, help="Folder of results that the jobs write to."),
    ] = Path("results"),
    cancel: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="End this job, or all jobs of this array; what is measured stays."),
    ] = None,
    form: OutputFormat = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs that were submitted, with their states, or cancel some.

    A job writes its own state. One that was killed and will not be requeued is lost: submit the same command again,
    which continues. A damaged submission is named on stderr, and the exit code is then 1.
    """
    from retbench.running.submission import cancel as cancel_job
    from retbench.running.submission import list_jobs

    form = output_format(form, as_json=as_json)
    if "--out" in given_options(call) and not out.is_dir():
        raise typer.BadParameter(f"--out: '{out}' does not exist. Give the folder of results of the jobs.")
    for job_id in cancel or ():
        cancel_job(out, job_id)
    rows, problems = list_jobs(out)
    if rows or form == "json":
        print_jobs(rows, form)
    elif not problems:
        print_prose(f"Nothing was submitted from {out}. Submit a command: `retbench submit run latency`.")
    for problem in problems:
        typer.echo(f"retbench: {problem}", err=True)
    if problems:
        raise typer.Exit(RetbenchError.exit_code)


def print_jobs(rows: "list[JobRow]", form: str) -> None:
    """Print jobs as a table, or as one JSON object."""
    logs = [None if row.log is None else str(row.log) for row in rows]
    if form == "json":
        names = ("cluster", "job_id", "state", "starts", "command", "submitted_at")
        print_json(
            {
                "jobs": [
                    {**{name: getattr(row, name) for name in names}, "log": log}
                    for row, log in zip(rows, logs, strict=True)
                ]
            }
        )
        return
    header = ("job", "cluster", "state", "starts", "command", "submitted", "log")
    cells = [
        (one.job_id, one.cluster, one.state, str(one.starts), one.command, one.submitted_at, log or "")
        for one, log in zip(rows, logs, strict=True)
    ]
    print_table(header, cells, form)
