"""What a cell that may take hours tells of itself, so that it is not taken for one that hangs."""

import time
from collections.abc import Callable

from retbench.run.protocol import Advanced, Message

INTERVAL_S = 1.0
"""Least time between two messages: the runner, which may share the cores, is not to be kept busy."""


class Heartbeat:
    """Tells of the tokens that a cell has read, at most once in `INTERVAL_S`.

    Args:
        tell: Sends a message to the runner.
    """

    def __init__(self, tell: Callable[[Message], None]) -> None:
        self._tell = tell
        self._num_tokens = 0
        self._told_s = time.monotonic()

    def __call__(self, num_tokens: int) -> None:
        """So many tokens more were read."""
        self._num_tokens += num_tokens
        now_s = time.monotonic()
        if now_s - self._told_s >= INTERVAL_S:
            self._told_s = now_s
            self._tell(Advanced(num_tokens=self._num_tokens))
