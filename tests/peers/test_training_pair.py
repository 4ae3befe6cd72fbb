"""The bar on training a pair, at a size that takes seconds: equality before speed, and a ratio of tokens a second."""

import pytest

from benchmarks.peers import training_pair
from benchmarks.peers.outcomes import Limit

pytestmark = pytest.mark.peers


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIZE": "300k", "LENGTH": 300, "TIMED": 2}.items():
        monkeypatch.setattr(training_pair, name, value)
    # Both sides take longer to compile than all of the rest.
    monkeypatch.setattr(training_pair, "OVERRIDES", (*training_pair.OVERRIDES, "training.compile=false"))


@pytest.mark.usefixtures("_small")
def test_both_sides_are_proven_and_then_timed_in_tokens_a_second() -> None:
    retnet, transformer, speed = training_pair.throughput(2, limit=0.8)
    assert all(proof.holds and proof.ratio > 0 for proof in (retnet, transformer))
    assert "chunkwise = parallel" in retnet.bar
    assert "auto = reference" in transformer.bar
    assert (speed.bar, speed.limit) == ("training-throughput-2048", Limit(low=0.8))
    assert speed.note == "tokens/s, size 300k; chunkwise over sdpa:flash"
    assert speed.low < speed.ratio < speed.high
    assert speed.ours > 100  # more tokens than seconds: a rate, not a time


@pytest.mark.usefixtures("_small")
def test_nothing_is_timed_where_the_gradients_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_pair, "GRADIENT_LIMIT", 1e-12)
    proofs = list(training_pair.throughput(2, limit=0.8))
    assert [proof.holds for proof in proofs] == [False]
