"""The rules on rounds of a real machine: `python -m benchmarks.aa` measured them, half of them with one core loaded."""

import numpy as np
import pytest

from comparing.corpus import PATH, Replay, read_corpus
from retbench.comparing.items import Times
from retbench.comparing.sampling import Sampled, sample
from retbench.comparing.sequential import Rules

pytestmark = pytest.mark.skipif(not PATH.exists(), reason="no corpus: python -m benchmarks.aa records one")

ALARM_RUNS, MOVED_RUNS, MAX_ROUNDS = 500, 200, 20


@pytest.fixture(scope="module")
def corpus() -> dict[bool, list[Times]]:
    return read_corpus()


def run(rounds: list[Times], seed: int, factor: float = 1.0) -> Sampled:
    source = Replay(rounds, np.random.default_rng(seed), factor)
    return sample(sorted(rounds[0]), "transformer", source, Rules(), MAX_ROUNDS)


def decode_verdicts(sampled: Sampled) -> set[str]:
    return {
        decision.verdict
        for item, decision in sampled.decisions.items()
        if item.kind != "ratio" and item.places[0].workload == "decode"
    }


def test_the_corpus_is_large_enough_and_half_of_it_loaded(corpus: dict[bool, list[Times]]) -> None:
    assert min(len(rounds) for rounds in corpus.values()) >= 100
    assert all(len(times) == 10 for rounds in corpus.values() for times in rounds)


@pytest.mark.parametrize("loaded", [False, True])
def test_identical_code_raises_an_alarm_in_one_run_of_a_hundred_at_most(
    corpus: dict[bool, list[Times]], loaded: bool
) -> None:
    alarms = 0
    for seed in range(ALARM_RUNS):
        verdicts = {decision.verdict for decision in run(corpus[loaded], seed).decisions.values()}
        alarms += bool(verdicts & {"regressed", "improved"})
    assert alarms <= 0.01 * ALARM_RUNS


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    ("factor", "share"), [(1.05, 0.95), (1.10, 0.99), (1 / 1.05, 0.95), (1 / 1.10, 0.99)]
)
def test_what_has_moved_is_found_within_twenty_rounds(
    corpus: dict[bool, list[Times]], factor: float, share: float, loaded: bool
) -> None:
    """The decode times of both models move alike: what is to be found are their two curves."""
    verdict = "regressed" if factor > 1 else "improved"
    found = sum(
        decode_verdicts(run(corpus[loaded], seed, factor))[verdict] == 2 for seed in range(MOVED_RUNS)
    )
    assert found >= share * MOVED_RUNS
