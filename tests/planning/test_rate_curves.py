"""Rates of operators by footprint: each call has memory of its own, and what it takes beside its bytes is left out."""

import time

import pytest
import torch

from retbench.errors import UnsupportedError
from retbench.planning.rate_curves import Call, median_of, rate_curve
from retbench.units import MIB

CPU = torch.device("cpu")
CALL_S = 0.002


class Sleeping:
    """An operator on 16 MiB that takes a known time."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Call:
        self.made += 1
        return lambda: time.sleep(CALL_S)


def test_a_footprint_consists_of_as_many_calls_as_its_bytes_need() -> None:
    operator = Sleeping()
    curve = rate_curve((16 * MIB, operator), [MIB, 64 * MIB], CPU)
    assert operator.made == 4  # one for a footprint that is smaller than what a call moves, and three more
    assert [footprint for footprint, _ in curve] == [MIB, 64 * MIB]
    for _, bytes_per_s in curve:
        assert 0.2 * 16 * MIB / CALL_S < bytes_per_s <= 16 * MIB / CALL_S


def test_a_call_counts_without_the_seconds_that_are_not_those_of_its_bytes() -> None:
    ((_, bytes_per_s),) = rate_curve((16 * MIB, Sleeping()), [16 * MIB], CPU, call_s=0.75 * CALL_S)
    assert 16 * MIB / CALL_S < bytes_per_s <= 4.01 * 16 * MIB / CALL_S
    with pytest.raises(UnsupportedError, match="while nothing else runs"):
        rate_curve((16 * MIB, Sleeping()), [16 * MIB], CPU, call_s=1.0)


def test_the_median_leaves_out_the_first_measurements() -> None:
    found = iter([100.0] * 3 + [1.0] * 4 + [2.0] + [3.0] * 4)
    assert median_of(lambda: next(found)) == 2.0
