"""The verbs about a model or a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from retbench.cli.options import AsJson, DataDir, DeviceName


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    app.command(epilog="Example: retbench verify retnet --size 1m")(verify)
    app.command(epilog="Example: retbench predict retnet --device a100-80gb --context 8192 --batch 8")(
        predict
    )
    app.command(
        epilog='Example: retbench generate fla-hub/retnet-1.3B-100B --prompt "The sea was" --tokenizer mistral'
    )(generate)


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name from `retbench list --models`.")],
    size: Annotated[str, typer.Option(help="A name from `retbench list --sizes`.")] = "6m",
    dtype: Annotated[str, typer.Option(help="float64, float32, bfloat16 or float16.")] = "float32",
    backend: Annotated[
        str | None, typer.Option(help="Retention form or attention backend; by default the model's own.")
    ] = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Show that all forms of a model are one function.

    A run checks the same before it times anything. Exit code 1 where the forms differ.
    """
    from retbench.cli import verify as command

    command.verify(command.Request(model, size, dtype, backend, device), as_json=as_json)


def predict(
    context_of_call: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A name from `retbench list --models`.")
    ] = None,
    size: Annotated[str, typer.Option(help="A name from `retbench list --sizes`.")] = "6.7b",
    device: Annotated[
        str, typer.Option(help="a100-80gb, a100-80gb-pcie, h100-80gb or h200; cpu or cuda: measured now.")
    ] = "a100-80gb",
    ceilings: Annotated[
        Path | None, typer.Option(help="Folder or file of records whose ceilings replace the device's.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="By default that of the records, float32 on cpu, else bfloat16.")
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option(help="Context length; may be given again. By default 1K to 32K.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Batch size; may be given again. By default 1.")
    ] = None,
    kv_heads: Annotated[
        int | None, typer.Option(min=1, help="Key and value heads of the Transformer; by default all heads.")
    ] = None,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="Hold the paper's own numbers against the closed forms instead."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Predict time per token, memory, largest batch and crossover of a model and its counterpart.

    From a datasheet or from measured ceilings it is the least time that the device allows; on a CPU, where the parts of
    a step are measured one by one, what a step should take.
    """
    from retbench.cli import predict as command

    if (model is None) != paper:
        raise typer.BadParameter("give either MODEL or --paper")
    if model is None:
        if given := _given(context_of_call) - {"--paper", "--as-json"}:
            raise typer.BadParameter(
                f"--paper has the paper's own sizes and device: leave out {', '.join(given)}"
            )
        command.print_explanations(as_json=as_json)
        return
    if ceilings is not None and "--device" in _given(context_of_call):
        raise typer.BadParameter("--ceilings are those of the records' device: leave out --device")
    contexts = tuple(context or (1024, 2048, 4096, 8192, 16384, 32768))
    command.print_prediction(
        command.Request(model, size, device, ceilings, dtype, contexts, tuple(batch or (1,)), kv_heads),
        as_json=as_json,
    )


def _given(call: typer.Context) -> set[str]:
    """The options that were given, and not left at their defaults."""
    sources = {name: call.get_parameter_source(name) for name in call.params}
    return {
        f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    }


def generate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder or file, a path below the data folder, or OWNER/REPOSITORY on the Hugging Face hub.",
        ),
    ],
    prompt: Annotated[
        str, typer.Option(help="Text to continue; - reads it from standard input. Empty begins a text.")
    ] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens at most.")] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(help="0 takes the likeliest token; by default 1 with --top-k or --top-p, else 0."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among so many of the likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw among the fewest tokens that have this probability together.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    device: DeviceName = None,
    dtype: Annotated[
        str | None, typer.Option(help="By default float32 on a CPU, else that of the stored weights.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="By default the checkpoint's own, where it has one.")
    ] = None,
    data_dir: DataDir = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Commit, branch or tag on the hub; by default the pinned one, else main."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="auto, retbench, fla, llama, llama2c or torchscale.")
    ] = "auto",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read weights that torch.save wrote, as tensors alone.")
    ] = False,
) -> None:
    """Continue a text with any checkpoint, printed as it comes.

    The prompt and what follows it go to stdout, until the model ends the text or --max-tokens are reached; the time
    to the first token and the tokens a second go to stderr.
    """
    from retbench.cli import generate as command

    command.generate(
        command.Request(
            checkpoint,
            prompt,
            max_tokens,
            temperature,
            top_k,
            top_p,
            seed,
            device,
            dtype,
            tokenizer,
            data_dir,
            revision,
            form,
            allow_pickle,
        )
    )
