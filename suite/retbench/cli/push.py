"""`retbench push`: publish a folder of results as a dataset on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.options import new_app, not_empty, read_path

app = new_app()


@app.command(epilog="Example: retbench push results --hub OWNER/NAME --dry-run")
def push(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", parser=read_path, help="Folder of results, whose record files are published."
        ),
    ],
    hub: Annotated[
        str,
        typer.Option(metavar="OWNER/NAME", callback=not_empty, help="Dataset on the hub; made if it is new."),
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new dataset private.")] = False,
    message: Annotated[
        str, typer.Option(metavar="TEXT", callback=not_empty, help="Message of the commit.")
    ] = "Records of retbench",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and print the card; send nothing.")
    ] = False,
) -> None:
    """Publish a folder of results as a dataset on the Hugging Face hub.

    Record files and their per-document files are uploaded in one commit; files that the dataset has besides stay.
    Records hold the command line, the machine's hardware and versions, and file names of checkpoints and corpora:
    read them before you publish. Log in with `hf auth login`, or set HF_TOKEN.
    """
    from retbench.cli.table import print_problems
    from retbench.data.hub import check_dataset_name, push_dataset
    from retbench.report.card import CARD_NAME, published_files, write_card
    from retbench.report.results import load_results
    from retbench.units import format_bytes

    check_dataset_name(hub)
    results = load_results(folder)
    files = published_files(folder, results)
    card = write_card(hub, results)
    print_problems(results.problems)
    if dry_run:
        for name, path in files.items():
            typer.echo(f"{name}\t{format_bytes(path.stat().st_size)}")
        typer.echo(f"{CARD_NAME}:\n\n{card}", nl=False)
        return
    contents: dict[str, Path | bytes] = {**files, CARD_NAME: card.encode()}
    typer.echo(push_dataset(hub, contents, message, private=private))
