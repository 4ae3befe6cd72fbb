"""Tells a run that has gone wrong from one that is noisy, before a step spoils the weights."""

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from retbench.errors import DivergedError

RECENT_STEPS = 64
"""Steps whose median loss a new loss is held against."""
MIN_STEPS = 16
"""Fewer steps than this have no median worth the name."""


class LossMonitor:
    """Looks at every step's loss and gradients ahead of the optimiser.

    Args:
        vocab_size: A model that guesses among so many words pays log(vocab_size); a loss below is no spike.
        spike_ratio: A loss above so many times the recent median, and above guessing, ends the run.
        recent: Losses of the steps before, where a run goes on.
    """

    def __init__(self, vocab_size: int, spike_ratio: float, recent: Iterable[float] = ()) -> None:
        self._guess = math.log(vocab_size)
        self._ratio = spike_ratio
        self._recent: deque[float] = deque(recent, maxlen=RECENT_STEPS)

    @property
    def recent(self) -> list[float]:
        """The losses that the next is held against."""
        return list(self._recent)

    def check(self, step: int, loss: float, grad_norm: float) -> None:
        """Take note of a step, counted from 1.

        Raises:
            DivergedError: the loss or the gradients are not finite, or the loss is a spike.
        """
        remedy = "Use a lower learning rate, a longer warm-up or a tighter grad_clip."
        if not math.isfinite(loss):
            raise DivergedError(f"step {step}: the training loss is {loss}. {remedy}")
        if not math.isfinite(grad_norm):
            raise DivergedError(
                f"step {step}: the norm of the gradients is {grad_norm} at a loss of {loss:.4g}. {remedy}"
            )
        if len(self._recent) >= MIN_STEPS:
            usual = median(self._recent)
            if loss > self._guess and loss > self._ratio * usual:
                raise DivergedError(
                    f"step {step}: the training loss is {loss:.4g} nats, more than {self._ratio:g} times the median "
                    f"of the last {len(self._recent)} steps ({usual:.4g}) and above guessing ({self._guess:.4g}). "
                    f"{remedy} spike_ratio sets the limit."
                )
        self._recent.append(loss)
