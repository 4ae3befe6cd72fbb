"""The bars on operators alone: their names, the proof before the times, and the side that is divided by."""

import pytest

from benchmarks.peers import operators
from benchmarks.peers.outcomes import Limit

pytestmark = pytest.mark.peers

NAMES = {
    "scalar": ["linear attention", "gated retention", "Mamba-2"],
    "vector": ["GLA", "RWKV-6"],
}


@pytest.mark.parametrize("decay", NAMES)
def test_equality_is_proven_before_each_operator_is_compared_with_retention(
    decay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(1, 100))
    monkeypatch.setattr(operators, "PROMPT_LEN", 200)
    monkeypatch.setattr(operators, "PROVEN_LEN", 130)
    monkeypatch.setattr(operators, "time_median", lambda call: (call(), float(next(seconds)))[1])
    found = list(operators.prefill_operators(2, decay, limit=1.1))
    proofs, times = found[: len(NAMES[decay])], found[len(NAMES[decay]) :]
    assert [one.bar for one in proofs] == [
        f"prefill-{decay}-decay: {name}, equality" for name in NAMES[decay]
    ]
    assert [one.bar for one in times] == [f"prefill-{decay}-decay: {name}" for name in NAMES[decay]]
    assert all(one.holds for one in proofs)
    assert len({one.theirs for one in times}) == 1  # retention's time
    assert {one.limit for one in times} == {Limit(high=1.1)}


def test_nothing_is_timed_if_an_operator_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "PROMPT_LEN", 200)
    monkeypatch.setattr(operators, "PROVEN_LEN", 130)
    monkeypatch.setattr(operators, "FP32_LIMIT", -1.0)
    assert [one.holds for one in operators.prefill_operators(2, "vector", limit=2.5)] == [False]
