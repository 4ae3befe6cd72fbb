"""Run bars and print one JSON line per result: `python -m benchmarks.predict`; see `benchmarks.command`."""

import sys
from collections.abc import Sequence

from benchmarks.command import run_command
from benchmarks.predict.bars import BARS

EPILOG = """\
Each line holds the predicted (ours) and measured (theirs) seconds of a step, their ratio, its 90 % interval over rounds
(low, high), the limits and whether the whole interval lies within them. Run nothing else meanwhile.

Example: python -m benchmarks.predict --only decode-25m
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bars that the arguments select, and return the exit code."""
    return run_command(
        BARS,
        arguments,
        prog="python -m benchmarks.predict",
        description="Compare predicted times of decode steps with measured ones on this CPU.",
        epilog=EPILOG,
    )


if __name__ == "__main__":
    sys.exit(main())
