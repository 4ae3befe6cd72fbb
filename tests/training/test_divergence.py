import math

import pytest

from retbench.errors import DivergedError
from retbench.training.divergence import LossMonitor

GUESS = math.log(257)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_at_once(loss: float) -> None:
    with pytest.raises(DivergedError, match=r"step 1: the training loss is"):
        LossMonitor(257, 3.0).check(1, loss, 1.0)


def test_gradients_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DivergedError, match=r"step 1: the norm of the gradients is inf"):
        LossMonitor(257, 3.0).check(1, GUESS, math.inf)


def test_a_spike_is_refused_and_names_its_limit() -> None:
    monitor = LossMonitor(257, 3.0, [2.0] * 20)
    monitor.check(21, 5.9, 1.0)
    with pytest.raises(DivergedError, match=r"step 22: .* 6\.1 nats, more than 3 times the median"):
        monitor.check(22, 6.1, 1.0)


def test_what_is_no_worse_than_guessing_is_no_spike() -> None:
    LossMonitor(257, 3.0, [0.1] * 20).check(21, GUESS - 0.01, 1.0)


def test_the_first_steps_may_be_wild() -> None:
    monitor = LossMonitor(257, 3.0)
    for step, loss in enumerate([1.0, 30.0, 2.0], start=1):
        monitor.check(step, loss, 1.0)


def test_a_restarted_monitor_judges_as_the_one_before() -> None:
    before = LossMonitor(257, 3.0)
    for step in range(1, 101):
        before.check(step, 2.0 + step / 100, 1.0)
    after = LossMonitor(257, 3.0, before.recent)
    assert after.recent == before.recent
    with pytest.raises(DivergedError):
        after.check(101, 9.0, 1.0)
