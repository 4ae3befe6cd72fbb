from types import SimpleNamespace

import pytest

from retbench.run import heartbeat
from retbench.run.heartbeat import Heartbeat
from retbench.run.protocol import Advanced, Message


def test_it_counts_every_token_and_tells_at_most_once_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter([100.0, 100.1, 101.0, 101.1, 101.9, 102.0])
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: next(now_s)))
    told: list[Message] = []
    beat = Heartbeat(told.append)
    for num_tokens in (5, 6, 7, 8, 9):
        beat(num_tokens)
    assert told == [Advanced(num_tokens=11), Advanced(num_tokens=35)]
