"""The command line: thin verbs. Each reads its options and calls one function of `commands`.

Those that list what there is are here, all others in modules by what they are about. Nothing heavy is imported here,
so that help and mistakes answer at once; a command imports what it needs when it runs. Results go to stdout, talk goes
to stderr.
"""

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import retbench
from retbench.cli import baseline, measuring, models, reading
from retbench.cli.check import check
from retbench.cli.compare import compare
from retbench.cli.options import AsJson, DataDir, DeviceName
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
    from retbench.cli import listing

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


measuring.register(app)
reading.register(app)
models.register(app)


@app.command(epilog="Example: retbench env --json")
def env(device: DeviceName = None, as_json: AsJson = False) -> None:
    """Show what this machine is and can do."""
    from retbench.cli import env as command

    command.show_environment(device, as_json=as_json)


app.command(
    epilog="Example: retbench compare results/MACHINE/latency/BEFORE.jsonl results/MACHINE/latency/AFTER.jsonl"
)(compare)
app.command(epilog="Example: retbench check --against HEAD~1 --format md")(check)
app.add_typer(baseline.app, name="baseline")
