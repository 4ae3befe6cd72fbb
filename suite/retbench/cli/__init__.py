"""The command line: one module per command, imported only when its command is requested.

Results go to stdout; progress and diagnostics go to stderr. Nothing heavy is imported here, so that help and
unknown commands answer at once.
"""

import atexit
import errno
import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import retbench
from retbench.errors import (
    INTERRUPTED,
    MAX_SHOWN,
    ConfigError,
    RetbenchError,
    StorageError,
    UnsupportedError,
    shown,
    unknown_name,
)

EXIT_CODES = """\
Exit codes: 0 fine (an expected out-of-memory included); 1 a cell or a check failed, or something is slower; 2 the
request is impossible; 3 not supported on this machine, not possible while another run is timing, or not comparable;
4 inconclusive, with --strict; 130 interrupted, with everything measured kept."""

COMMANDS = {
    "list": "List the experiments, the model sizes, the models or the tasks.",
    "run": "Measure an experiment, or continue where it stopped.",
    "train": "Train the models of an experiment under equal conditions, or continue.",
    "submit": "Carry out run or train on a cluster, in shards and with requeues.",
    "jobs": "List the jobs that were submitted, with their states, or cancel some.",
    "table": "Print the results of an experiment from its records.",
    "report": "Write the report and its figures from the records.",
    "claims": "Print the papers' claims, each with the paper's number, the one measured here and the verdict.",
    "verify": "Check that all execution modes of a model are equivalent.",
    "predict": "Predict time per token, memory, largest batch and crossover.",
    "generate": "Continue a text with any checkpoint, printing tokens as they come.",
    "push": "Publish a folder of results as a dataset on the Hugging Face hub.",
    "export": "Write a checkpoint in the format of transformers or flash-linear-attention.",
    "export-results": "Write recorded task scores as lm-eval does.",
    "env": "Show this machine: hardware, versions and usable backends.",
    "compare": "Compare two record sets of one machine, or a run with a baseline: is B slower than A?",
    "compare-commands": "Compare the wall time of two shell commands: is B slower than A?",
    "check": "Check machine-independent quantities; with --against, the times of a checkout.",
    "baseline": "Keep a window of accepted runs that later runs are compared with.",
}
"""The commands in the order of the help. Each is `app` in the module of its name."""


def load_command(name: str) -> Any:
    """Import the module of a command and return its click command."""
    return typer.main.get_command(import_module(f"retbench.cli.{name.replace('-', '_')}").app)


_USAGE_ERROR: Any = typer.BadParameter.__base__
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_WRONG_PATH = {
    *(errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS),
}
"""Faults of the path that was given, and not of the machine."""


def _skip_last_collection() -> None:
    """Hide all objects from Python's last collection, which would scan all of torch: some 0.5 s on an AMD EPYC."""
    if "triton" not in sys.modules:  # its bindings print to stderr whatever is not freed then
        gc.freeze()


class _Commands(TyperGroup):
    """Load a command on request, and end it with one message and an exit code after an error of ours or of a file."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = dict.fromkeys(COMMANDS)  # names for suggestions

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run the program."""
        from retbench.cli.streams import protect_streams
        from retbench.measure.allocator import own_process

        if not args and "args" not in settings:  # the words of the command line
            own_process()
            atexit.register(_skip_last_collection)
        protect_streams()
        _end_when_stopped()
        return super().main(*args, **settings)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, or None for an unknown name."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands of the help without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command by its name; ConfigError with a suggestion for an unknown one."""
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            raise unknown_name("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the options before the command."""
        with _errors_as_messages():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _errors_as_messages():
            return super().invoke(ctx)


_NOT_UTF8 = ("surrogates not allowed", "is not valid UTF-8")
"""Words of what refuses a path that is no text: JSON for workers, the hash of a cell, and safetensors."""


class _Stopped(KeyboardInterrupt):
    """A signal to stop.

    After a KeyboardInterrupt itself that has left code run by `exec`, as in an import of torch, `python -m` ends by
    SIGINT whatever the exit code is.
    """


def _stop(*_: object) -> NoReturn:
    raise _Stopped


def _end_when_stopped() -> None:
    """Let SIGTERM and SIGHUP interrupt this process as Ctrl-C does, where nothing else is to happen at them."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    """End the program with one message and an exit code after an error that is no fault of ours.

    These are errors of the command line, of a file, of a user's package, those that are raised for the user, and memory
    that ran out.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except _USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            raise
        from retbench.cli.usage import describe_usage_error

        text = describe_usage_error(error).replace("\n", " ")
        _end(
            text if text.isprintable() and len(text) <= 4 * MAX_SHOWN else shown(text), error.exit_code, error
        )
    except RetbenchError as error:
        _end(str(error), error.exit_code, error)
    except OSError as error:
        _end(*_explain(error), error)
    except KeyboardInterrupt as error:
        _end("interrupted", INTERRUPTED, error)
    except Exception as error:
        if any(words in str(error) for words in _NOT_UTF8):
            _end(
                f"a path whose bytes are not UTF-8 cannot be used: {shown(str(error))}. Rename the file or folder, or "
                "give another one.",
                ConfigError.exit_code,
                error,
            )
        from retbench.measure.limits import is_out_of_memory
        from retbench.user_packages import fault, last_call, package_names

        if is_out_of_memory(error):
            _end(
                f"memory ran out: {shown(str(error))}. End other programs that hold memory, or ask for less.",
                UnsupportedError.exit_code,
                error,
            )
        packages = package_names()
        if last_call(error, packages).package not in packages:
            raise
        found = fault(error, packages)
        _end(str(found), found.exit_code, error)


def _end(message: str, code: int, error: BaseException) -> NoReturn:
    typer.echo(f"retbench: {message}", err=True)
    raise typer.Exit(code) from error


def _explain(error: OSError) -> tuple[str, int]:
    """Return the message and the exit code of a file operation that failed."""
    if error.errno in _NO_SPACE:
        return "no space left on the device. Free some and run the command again.", StorageError.exit_code
    where = "" if error.filename is None else f"{shown(error.filename)}: "
    code = ConfigError.exit_code if error.errno in _WRONG_PATH else StorageError.exit_code
    advice = "Give another path" if code == ConfigError.exit_code else "Check the disk and the network"
    return f"{where}{error.strerror or error}. {advice}, then run the command again.", code


app = typer.Typer(
    cls=_Commands,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Benchmark matched RetNet and Transformer models for latency, memory and quality.

    All execution modes of a model are checked to be numerically equivalent before anything is timed.
    Start with: retbench run latency, then retbench report.
    """
    if version:
        typer.echo(retbench.__version__)
        raise typer.Exit
