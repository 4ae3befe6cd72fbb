"""Run bars and print one JSON line per result: `python -m benchmarks.peers`; see `benchmarks.command`."""

import sys
from collections.abc import Sequence

from benchmarks.command import run_command
from benchmarks.peers.bars import BARS

EPILOG = """\
Each line holds both sides, their ratio, its 90 % interval over rounds (low, high), the limit and whether it holds:
the whole interval must lie inside. For equality, `ours` is the largest absolute difference, `theirs` the root mean
square of the peer's logits, and `ratio` the error. For speed, both are seconds or the quantity in `note`. Run nothing
else meanwhile.

Example: python -m benchmarks.peers --only decode-torchscale --only decode-llama-4k
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bars that the arguments select, and return the exit code."""
    return run_command(
        BARS,
        arguments,
        prog="python -m benchmarks.peers",
        description="Check that retbench's models equal other projects', then time both alternately.",
        epilog=EPILOG,
    )


if __name__ == "__main__":
    sys.exit(main())
