"""How often a long call is timed, without torch, so that an estimate follows the same rule.

`MIN_CALLS` times, and then as often as fits into `BUDGET_S` in all, up to the profile's `min_steps`. A call
that takes longer than an eighth of a second is thus timed three times. Every sample is in the record.
"""

from collections.abc import Sequence
from statistics import median

MIN_CALLS = 3
BUDGET_S = 0.5


def more_calls(samples: Sequence[float], min_steps: int) -> int:
    """How many calls are timed beyond the first few, given how many seconds those took."""
    fitting = int(BUDGET_S / median(samples))
    return max(0, min(fitting, min_steps) - len(samples))
