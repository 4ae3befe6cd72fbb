"""Runs bars and prints one JSON line for each thing shown: `python -m benchmarks.eval`; see `benchmarks.command`."""

import sys
from collections.abc import Sequence

from benchmarks.command import run_command
from benchmarks.eval.bars import BARS

EPILOG = """\
Each line holds both sides, their ratio, its 90 % interval over rounds (low, high), the limit and whether it holds.
Of log-likelihoods `ours` is the largest absolute difference, `theirs` the root mean square of HFLM's, `ratio` the
error; of a metric both are its mean and `ratio` counts the documents that differ; of speed both are seconds. The task
files and the trained model come from the folder of RETBENCH_DATA. Run nothing else while a speed is measured.

Example: RETBENCH_DATA=data python -m benchmarks.eval --only agree-hellaswag --only speed-hellaswag
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bars that the arguments choose; returns the exit code."""
    return run_command(
        BARS,
        arguments,
        prog="python -m benchmarks.eval",
        description="Show retbench's scores equal to those of lm-eval's HFLM, then time both in turn.",
        epilog=EPILOG,
    )


if __name__ == "__main__":
    sys.exit(main())
