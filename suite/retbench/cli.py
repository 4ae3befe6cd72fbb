"""The command line: thin verbs. Each reads its options and calls one function of `commands`.

Nothing heavy is imported here, so that help and mistakes answer at once; a command imports what it needs when it
runs. Results go to stdout, talk goes to stderr.
"""

import errno
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import retbench
from retbench import cli_checks
from retbench.errors import RetbenchError

INTERRUPTED = 130
EXIT_CODES = """\
Exit codes: 0 fine (an expected out-of-memory included); 1 a cell failed, a check is red, or something is slower; 2 the
request is impossible; 3 not supported on this machine, or not comparable; 4 inconclusive, with --strict;
130 interrupted, with everything measured kept."""


class _Commands(TyperGroup):
    """Ends a command that meets one of our errors with its message and its exit code, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RetbenchError as error:
            typer.echo(f"retbench: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            typer.echo(
                "retbench: no space left on the device. Free some and run the command again.", err=True
            )
            raise typer.Exit(RetbenchError.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo("retbench: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=_Commands,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ExperimentName = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="A name from `retbench list`, or the path of a TOML file.")
]
ResultsPath = Annotated[Path, typer.Option("--results", help="Folder or file of records to read.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        exists=True,
        file_okay=False,
        help="Folder that corpora, tokenizers and tasks are looked up in; by default that of RETBENCH_DATA.",
    ),
]
DeviceName = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:N; by default the first GPU, else the CPU.")
]


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Matched RetNet and Transformer models, proven equal in every form, then timed and weighed.

    Start with: retbench run latency, then retbench report.
    """
    if version:
        typer.echo(retbench.__version__)
        raise typer.Exit


@app.command("list", epilog="Example: retbench list --sizes")
def list_(
    sizes: Annotated[bool, typer.Option("--sizes", help="List the named model sizes instead.")] = False,
    models: Annotated[bool, typer.Option("--models", help="List the models that `verify` takes.")] = False,
    tasks: Annotated[
        bool, typer.Option("--tasks", help="List the zero-shot tasks, and where the data of each is.")
    ] = False,
    page: Annotated[
        bool, typer.Option("--page", help="Print the experiments with command and cost, as Markdown.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List the experiments, the model sizes, the models or the tasks."""
    from retbench.commands import listing

    if sizes + models + tasks + page > 1:
        raise typer.BadParameter("give one of --sizes, --models, --tasks and --page")
    if page and as_json:
        raise typer.BadParameter("--page is Markdown: give it without --json")
    if page:
        listing.print_page()
    elif tasks:
        listing.list_tasks(data_dir, as_json=as_json)
    elif sizes:
        listing.list_sizes(as_json=as_json)
    elif models:
        listing.list_models(as_json=as_json)
    else:
        listing.list_shipped(as_json=as_json)


@app.command(epilog="Example: retbench run latency --profile smoke --device cpu")
def run(
    experiment: ExperimentName,
    profile: Annotated[
        str | None,
        typer.Option(help="smoke, cpu or paper; by default paper on a GPU of 70 GB or more, else cpu."),
    ] = None,
    device: DeviceName = None,
    dtype: Annotated[str | None, typer.Option(help="Replaces the profile's dtype.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Keep the first so many context lengths, or documents.")
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Compile decode steps with torch.compile; replaces the profile's."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder that records are appended to.")] = Path(
        "results"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a field of the profile or of models.NAME."),
    ] = None,
    data_dir: DataDir = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is on disk already.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the cells with their expected time and memory; measure nothing."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure an experiment, or go on where it stopped.

    Records are appended as they are measured, so that nothing is lost when a run is ended; the same command
    measures what is left.
    """
    from retbench.plan import make_plan

    plan = make_plan(
        experiment,
        profile=profile,
        device=device,
        dtype=dtype,
        limit=limit,
        compiled=compiled,
        overrides=overrides or [],
        results=out,
        data_dir=data_dir.absolute() if data_dir else None,
    )
    from retbench.commands import run as command

    if dry_run:
        command.show_plan(plan, as_json=as_json)
    else:
        raise typer.Exit(command.carry_out(plan, out, fresh=fresh, as_json=as_json))


@app.command(epilog="Example: retbench train quality --profile smoke --device cpu")
def train(
    experiment: ExperimentName,
    profile: Annotated[
        str | None,
        typer.Option(help="smoke, cpu or paper; by default paper on a GPU of 70 GB or more, else cpu."),
    ] = None,
    device: DeviceName = None,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of results; the models go below its checkpoints/.")
    ] = Path("results"),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a field of the profile or of models.NAME."),
    ] = None,
    data_dir: DataDir = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the runs with their tokens and expected time; train nothing."),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the runs of this profile and train them anew.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the models of an experiment alike, or go on where training stopped.

    Each model runs the same grid of learning rates and takes its own best; then the final runs follow. A run that was
    ended, in whatever way, goes on as if it had not been.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m retbench train EXPERIMENT, with a folder of results that
    all of them see.
    """
    from retbench.commands import train as command

    request = command.Request(experiment, profile, device, tuple(overrides or ()), data_dir)
    if dry_run:
        command.show_plan(request, as_json=as_json)
    else:
        raise typer.Exit(command.train(request, out, fresh=fresh, as_json=as_json))


@app.command(epilog="Example: retbench table latency --format csv")
def table(
    experiment: ExperimentName,
    form: Annotated[str, typer.Option("--format", help="md, csv, json or latex.")] = "md",
    results: ResultsPath = Path("results"),
) -> None:
    """Print the results of an experiment from its records."""
    from retbench.commands import report as command

    command.print_table(experiment, form, results)


@app.command(epilog="Example: retbench report --results results --out reports")
def report(
    results: ResultsPath = Path("results"),
    out: Annotated[
        Path,
        typer.Option(file_okay=False, help="Folder to write to; an earlier report in it is overwritten."),
    ] = Path("reports"),
) -> None:
    """Write the report and its figures from the records."""
    from retbench.commands import report as command

    command.print_report(results, out)


@app.command(epilog="Example: retbench claims --format md")
def claims(
    form: Annotated[str, typer.Option("--format", help="md or json.")] = "md",
    results: ResultsPath = Path("results"),
) -> None:
    """Print the papers' claims, each with its verdict or what is missing for one.

    Only records under a paper's own conditions decide a claim; all others stand beside it in rows of their own.
    """
    from retbench.commands import claims as command

    command.print_claims(form, results)


@app.command(epilog="Example: retbench verify retnet --size 1m")
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
    from retbench.commands import verify as command

    command.verify(command.Request(model, size, dtype, backend, device), as_json=as_json)


@app.command(epilog="Example: retbench predict retnet --device a100-80gb --context 8192 --batch 8")
def predict(
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
        int | None, typer.Option(help="Key and value heads of the Transformer; by default all heads.")
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
    from retbench.commands import predict as command

    if (model is None) != paper:
        raise typer.BadParameter("give either MODEL or --paper")
    if model is None:
        command.print_explanations(as_json=as_json)
        return
    contexts = tuple(context or (1024, 2048, 4096, 8192, 16384, 32768))
    command.print_prediction(
        command.Request(model, size, device, ceilings, dtype, contexts, tuple(batch or (1,)), kv_heads),
        as_json=as_json,
    )


@app.command(
    epilog='Example: retbench generate fla-hub/retnet-1.3B-100B --prompt "The sea was" --tokenizer mistral'
)
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
    from retbench.commands import generate as command

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


@app.command(epilog="Example: retbench env --json")
def env(device: DeviceName = None, as_json: AsJson = False) -> None:
    """Show what this machine is and can do."""
    from retbench.commands import env as command

    command.show_environment(device, as_json=as_json)


cli_checks.register(app)
