"""Runs bars and prints one JSON line for each thing shown: `python -m benchmarks.peers`; see `benchmarks.command`."""

import sys
from collections.abc import Sequence

from benchmarks.command import run_command
from benchmarks.peers.bars import BARS

EPILOG = """\
Each line holds both sides, their ratio, its 90 % interval over rounds (low, high), the limit and whether it holds:
the whole interval must lie inside. Where equality is shown, `ours` is the largest absolute difference, `theirs` the
root mean square of the peer's logits, `ratio` the error; where speed is, both are seconds or what `note` says. Run
nothing else meanwhile.

Example: python -m benchmarks.peers --only decode-torchscale --only decode-llama-4k
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bars that the arguments choose; returns the exit code."""
    return run_command(
        BARS,
        arguments,
        prog="python -m benchmarks.peers",
        description="Show retbench's models equal to other projects', then time both in turn.",
        epilog=EPILOG,
    )


if __name__ == "__main__":
    sys.exit(main())
