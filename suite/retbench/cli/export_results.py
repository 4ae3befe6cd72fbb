"""`retbench export-results`: write recorded task scores in lm-eval's files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.options import DataDir, ExperimentName, ResultsPath, new_app, read_folder
from retbench.errors import RecordError, RetbenchError

if TYPE_CHECKING:
    from retbench.records.record import Record

app = new_app()


@app.command(epilog="Example: retbench export-results zeroshot lm-eval-results")
def export_results(
    experiment: ExperimentName,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=read_folder, help="Folder that the files are written to."),
    ],
    results: ResultsPath = Path("results"),
    data_dir: DataDir = None,
) -> None:
    """Write recorded task scores as lm-eval does.

    Each model of the experiment gets its `results_*.json` and `samples_*.jsonl`. Only the newest comparable records
    are written. The tasks' data are read again, because records hold no prompts; data that changed since are refused.
    A task that cannot be written is left out, and named on stderr with the reason; the exit code is then not 0. The
    written files are listed on stdout.
    """
    from itertools import groupby

    from retbench.cli.table import find_measured, read_results
    from retbench.evaluation.lm_eval_files import Scored, write_lm_eval_files
    from retbench.report.selection import select

    found = read_results(results)
    chosen = select(found.records, find_measured(experiment, found, results), found.folders)
    for note in chosen.left_out:
        typer.echo(f"left out: {note}", err=True)
    scored = [
        Scored(record, found.folders[record.documents])
        for record in chosen.quality
        if record.status == "ok" and record.documents is not None and "lm_eval_version" in record.backend
    ]
    if not scored:
        raise RecordError(
            f"{results}: holds no task scores of '{experiment}'. Experiments such as zeroshot have them: `retbench run "
            f"zeroshot`, then `retbench export-results zeroshot {folder}`."
        )
    scored.sort(key=lambda one: _name_and_shots(one.record))
    codes: set[int] = set()
    for (model, _), records in groupby(scored, key=lambda one: _name_and_shots(one.record)):
        written = write_lm_eval_files(model, list(records), folder, data_dir=data_dir)
        for path in written.files:
            typer.echo(str(path))
        for one, error in written.left_out:
            typer.echo(f"left out: task {one.record.point.task} of {model}: {error}", err=True)
            codes.add(error.exit_code)
    if codes:
        raise typer.Exit(codes.pop() if len(codes) == 1 else RetbenchError.exit_code)


def _name_and_shots(record: "Record") -> tuple[str, str]:
    """Return a name of a record's model instance, and what else the tasks of one results file share."""
    from retbench.report.points import instance_of

    instance = instance_of(record)
    parts = [record.model.name, None if instance.seed is None else f"{instance.size}-seed{instance.seed}"]
    point = record.point
    return "-".join(
        filter(None, parts)
    ), f"{instance.size} {point.num_fewshot or 0:06} {point.context_len:09}"
