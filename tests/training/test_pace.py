from types import SimpleNamespace

import pytest

from retbench.training import pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_rest_takes_as_long_an_operation_as_what_was_done(clock: list[float]) -> None:
    left = pace.Pace(1000.0)
    clock[0] += 5
    assert left.advance(100) == pytest.approx(45)
    clock[0] += 15
    assert left.advance(100) == pytest.approx(80)


def test_what_is_on_disk_already_takes_no_time(clock: list[float]) -> None:
    left = pace.Pace(1000.0)
    left.leave_out(600)
    clock[0] += 5
    assert left.advance(100) == pytest.approx(15)
    left.leave_out(300)  # a run that diverged
    clock[0] += 5
    assert left.advance(100) == 0
