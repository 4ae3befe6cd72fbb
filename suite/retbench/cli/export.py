"""`retbench export`: write a checkpoint in the format of another library, or a GGUF file as a folder."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.options import new_app, not_empty, read_folder
from retbench.errors import ConfigError
from retbench.files import check_writable

app = new_app()


@app.command(
    epilog="Example: retbench export results/checkpoints/quality/smoke/transformer-300k-seed0 exported/transformer"
)
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Folder of a training run or a checkpoint, a name on the hub, or a GGUF file.",
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", parser=read_folder, help="New folder for the exported model.")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="[auto|llama|fla]",
            help="llama: transformers' Llama. fla: RetNet of flash-linear-attention. auto: the one that fits.",
        ),
    ] = "auto",
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION", callback=not_empty, help="Commit, branch or tag of a name on the hub."
        ),
    ] = None,
) -> None:
    """Write a checkpoint in the format of transformers or flash-linear-attention.

    A Transformer becomes a folder that LlamaForCausalLM of transformers loads, a RetNet one for RetNetForCausalLM of
    flash-linear-attention, which has no RetNet with the decays of the shipped experiments: train with
    `--set models.retnet.decay=eq8` to export one. A GGUF file becomes a folder of transformers in float32, which
    `retbench run --model` takes. Exit code 2: the format has no such model.
    """
    from retbench.checkpoints.gguf import SUFFIX, export_gguf
    from retbench.checkpoints.reading import check_no_pickle, read_checkpoint
    from retbench.checkpoints.writing import export_checkpoint

    check_writable(folder, "the argument FOLDER")
    if checkpoint.endswith(SUFFIX):
        if form != "auto":
            raise ConfigError(
                f"--format {form}: a GGUF file is written as transformers has it. Leave --format out."
            )
        if revision is not None:
            raise ConfigError(
                f"--revision {revision}: a GGUF file is local, and has no revisions. Leave it out."
            )
        typer.echo(f"{folder}: {export_gguf(Path(checkpoint), folder):,} parameters in float32")
        return
    info = read_checkpoint(checkpoint, revision=revision)
    check_no_pickle(info)
    name = export_checkpoint(info, folder, format=form)
    typer.echo(
        f"{folder}: {info.config.num_layers} layers in the format {name}"
        f"{_tokenizer_note(info.tokenizer, read_checkpoint(str(folder)).tokenizer)}"
    )


def _tokenizer_note(tokenizer: str | None, exported: str | None) -> str:
    """Return how an exported model finds its tokenizer, if it has one; `exported` is the path of a copy."""
    if tokenizer is None:
        return ""
    if exported is not None:
        return f", with its tokenizer in {Path(exported).name}"
    return f"; its tokenizer is not among the files: give `--tokenizer {tokenizer}` to `retbench generate`"
