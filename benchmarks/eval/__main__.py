"""Run bars and print one JSON line per result: `python -m benchmarks.eval`; see `benchmarks.command`."""

import sys
from collections.abc import Sequence

from benchmarks.command import run_command
from benchmarks.eval.bars import BARS

EPILOG = """\
Each line holds both sides, their ratio, its 90 % interval over rounds (low, high), the limit and whether it holds.
For log-likelihoods, `ours` is the largest absolute difference, `theirs` the root mean square of HFLM's, and `ratio` the
error. For a metric, both are its mean and `ratio` counts the documents that differ. For speed, both are seconds. The
task files and the trained model come from the folder of RETBENCH_DATA. Run nothing else while a speed is measured.

Example: RETBENCH_DATA=data python -m benchmarks.eval --only agree-hellaswag --only speed-hellaswag
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bars that the arguments select, and return the exit code."""
    return run_command(
        BARS,
        arguments,
        prog="python -m benchmarks.eval",
        description="Check that retbench's scores equal those of lm-eval's HFLM, then time both alternately.",
        epilog=EPILOG,
    )


if __name__ == "__main__":
    sys.exit(main())
