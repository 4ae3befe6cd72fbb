"""The command of a package of bars: lists them, runs those chosen, prints one JSON line for each thing shown.

Exit codes: 0 every bar holds, 1 one does not, 2 the request is impossible, 3 a peer is not installed or data is
missing, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks.peers.bars import Bar, missing_packages
from retbench.errors import RetbenchError, unknown_name
from retbench.measure.environment import pin_process, worker_environment
from retbench.run.locks import Interrupted


def run_command(
    bars: Mapping[str, Bar], arguments: Sequence[str] | None, *, prog: str, description: str, epilog: str
) -> int:
    """Parse, check that every peer is there, run; returns the exit code.

    Args:
        bars: Every bar by name.
        arguments: Those of the command line; the process's own when None.
        prog: How the command is called.
        description: What it does, for its help.
        epilog: The end of its help.
    """
    options = _parse(arguments, prog, description, epilog)
    if options.list:
        for name, bar in bars.items():
            print(f"{name:24} {bar.title}" + (f"  [{', '.join(bar.peers)}]" if bar.peers else ""))
        return 0
    try:
        names = _chosen(bars, options.only)
        missing = missing_packages(bars[name] for name in names)
        if missing:
            print(
                f"not installed: {', '.join(missing)}. Run: pip install 'retbench[peers]' (in a checkout: "
                "pip install -e '.[peers]'), or choose bars that need none with --only.",
                file=sys.stderr,
            )
            return 3
        return _run({name: bars[name] for name in names}, options.rounds, options.threads)
    except RetbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def end_well(name: str, task: Callable[[], int], *, kept: str = "") -> int:
    """The exit code of a command: its task's, or that of what went wrong or of an interruption, which is told.

    Args:
        name: Of the command.
        task: What it does; returns its exit code.
        kept: What of it an interruption leaves, in words.
    """
    try:
        return task()
    except Interrupted:
        say(f"{name}: interrupted" + (f"; {kept}" if kept else ""))
        return 130
    except RetbenchError as error:
        say(f"{name}: {error}")
        return error.exit_code
    except OSError as error:
        say(f"{name}: {error}")
        return 2


def say(text: str) -> None:
    """Tell the user, beside what the command prints."""
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None, prog: str, description: str, epilog: str) -> argparse.Namespace:
    """Options; argparse ends the process with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="name every bar and end")
    parser.add_argument(
        "--only", action="append", metavar="BAR", default=[], help="run this bar; may be repeated"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="rounds of each timed bar, at least 2 (default 7)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides (default 2)")
    options = parser.parse_args(arguments)
    if options.rounds < 2 or options.threads < 1:
        parser.error("--rounds must be at least 2 (one round has no interval) and --threads at least 1")
    return options


def _chosen(bars: Mapping[str, Bar], only: Sequence[str]) -> list[str]:
    """The bars asked for, in their own order; ConfigError for an unknown name."""
    for name in only:
        if name not in bars:
            raise unknown_name("bar", name, bars, where="--only")
    return [name for name in bars if name in only or not only]


def _run(bars: Mapping[str, Bar], rounds: int, threads: int) -> int:
    """Run the bars and print their lines; 1 when one does not hold."""
    os.environ.update(worker_environment(threads))  # before torch is imported: OpenMP reads it then
    pin_process(threads)
    failed = []
    for name, bar in bars.items():
        print(f"{name}: {bar.title}", file=sys.stderr, flush=True)
        for outcome in bar.measure(rounds):
            print(outcome.to_json(), flush=True)
            if not outcome.holds:
                failed.append(outcome.bar)
    if failed:
        print(f"not held: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
