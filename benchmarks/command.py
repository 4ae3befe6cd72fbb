"""The command of a package of bars (comparisons with a limit): list them, run some, print a JSON line per result.

Exit codes: 0 every bar holds, 1 one does not, 2 the request is impossible, 3 a peer is not installed or data is
missing, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks.peers.bars import Bar, missing_packages
from retbench.errors import RetbenchError, unknown_name
from retbench.measure.allocator import own_process
from retbench.measure.environment import become_worker
from retbench.running.locks import Interrupted


def run_command(
    bars: Mapping[str, Bar], arguments: Sequence[str] | None, *, prog: str, description: str, epilog: str
) -> int:
    """Parse the options, check that every peer is installed, run the bars, and return the exit code.

    Args:
        bars: Every bar by name.
        arguments: Those of the command line; the process's own when None.
        prog: Name of the command.
        description: Purpose of the command, for its help.
        epilog: End of its help.
    """
    if arguments is None:
        own_process()
    options = _parse(arguments, prog, description, epilog)
    if options.list:
        for name, bar in bars.items():
            print(f"{name:24} {bar.heading}" + (f"  [{', '.join(bar.peers)}]" if bar.peers else ""))
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
    """Run a task and return its exit code, or that of an error or interruption, which is printed.

    Args:
        name: Name of the command.
        task: Does the work and returns the exit code.
        kept: A description of what an interruption leaves.
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
    """Print a message on stderr."""
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None, prog: str, description: str, epilog: str) -> argparse.Namespace:
    """Parse the options; argparse exits with 2 for wrong ones."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="list every bar and exit")
    parser.add_argument(
        "--only", action="append", metavar="BAR", default=[], help="run this bar; may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds per timed bar, at least 2 (default 7)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides (default 2)")
    options = parser.parse_args(arguments)
    if options.rounds < 2 or options.threads < 1:
        parser.error("--rounds must be at least 2 (one round has no interval) and --threads at least 1")
    return options


def _chosen(bars: Mapping[str, Bar], only: Sequence[str]) -> list[str]:
    """Return the requested bars in their own order; ConfigError for an unknown name."""
    for name in only:
        if name not in bars:
            raise unknown_name("bar", name, bars, where="--only")
    return [name for name in bars if name in only or not only]


def _run(bars: Mapping[str, Bar], rounds: int, threads: int) -> int:
    """Run the bars, print their lines, and return 1 if one does not hold."""
    become_worker(threads, "cpu")
    failed = []
    for name, bar in bars.items():
        print(f"{name}: {bar.heading}", file=sys.stderr, flush=True)
        for outcome in bar.measure(rounds):
            print(outcome.to_json(), flush=True)
            if not outcome.holds:
                failed.append(outcome.bar)
    if failed:
        print(f"not held: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
