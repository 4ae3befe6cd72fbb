"""How long the rest of a training command takes. Without torch."""

import time


class Pace:
    """How long the rest takes, reckoned by the operations that were done so far."""

    def __init__(self, flops: float) -> None:
        self._left = flops
        self._done = 0.0
        self._since = time.monotonic()

    def advance(self, flops: float) -> float:
        """Seconds left after so many more operations."""
        self._done += flops
        return max(0.0, self._left - self._done) * (time.monotonic() - self._since) / self._done

    def leave_out(self, flops: float) -> None:
        """Operations that need not be done."""
        self._left -= flops
