import pytest

from retbench.workloads.repetition import more_calls


@pytest.mark.parametrize(
    ("call_s", "min_steps", "calls"),
    [(5.0, 20, 3), (0.17, 20, 3), (0.1, 20, 5), (0.01, 20, 20), (0.01, 40, 40), (0.01, 1, 3)],
)
def test_a_call_is_timed_as_often_as_fits_but_three_times_at_least(
    call_s: float, min_steps: int, calls: int
) -> None:
    assert 3 + more_calls([call_s] * 3, min_steps) == calls
