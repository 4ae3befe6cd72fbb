"""The Python interface: `retbench.compare`. `retbench/__init__.py` imports this module on first use."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retbench.regress.report import CheckReport


def compare(
    first: "str | Callable[[], object]",
    second: "str | Callable[[], object]",
    *,
    margin: float = 0.02,
    rounds: int = 20,
    pairs: int | None = None,
    budget_s: float = 1200.0,
    notify: Callable[[str], None] = lambda text: None,
) -> "CheckReport":
    """Compare the wall times of two shell commands, or of two callables without arguments: is the second slower?

    Callables run in this process, after a warm-up, with the garbage collector off. Rounds, interim analyses and
    verdicts are those of `retbench check --against`.

    Args:
        first: What to compare with, a command as `sh -c` takes it or a callable.
        second: What is judged, of the same kind.
        margin: Share by which a time must have moved to count.
        rounds: Maximum number of rounds, without repeats of a flagged change.
        pairs: Samples of each side per round; None for as many, from 1 to 10, as take about 3 s.
        budget_s: Seconds after which no round begins.
        notify: Receives progress messages.

    Returns:
        A report of one item, `report.items[0]`: its `verdict` is "regressed", "improved", "same" or "inconclusive", its
        `change` the ratio with its interval. `report.exit_code(strict=False)` is that of the command.

    Raises:
        ConfigError: a value is out of range, or a command is compared with a callable.
        NotComparableError: the first command fails.
        RetbenchError: the second command fails. Exceptions of a callable are not caught.
        Interrupted: the user stopped the comparison of two commands.
    """
    from retbench.errors import ConfigError
    from retbench.regress.commands import PairLimits, compare_callables, compare_commands
    from retbench.stats.sequential import DecisionRules

    limits = PairLimits(rounds, pairs, budget_s)
    if isinstance(first, str) and isinstance(second, str):
        return compare_commands(first, second, limits, DecisionRules(margin=margin), notify)
    if callable(first) and callable(second):
        # A sample of a short callable is the mean of many calls, to which the floor of a single time does not apply.
        return compare_callables(first, second, limits, DecisionRules(margin=margin, floor_s=0.0), notify)
    kinds = f"{type(first).__name__} and {type(second).__name__}"
    raise ConfigError(f"compare takes two commands or two callables, and not {kinds}.")
