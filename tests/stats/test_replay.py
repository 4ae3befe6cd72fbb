"""The rules on rounds of a real machine, idle or with one core loaded: `python -m benchmarks.aa` measured them."""

import re
from pathlib import Path

import numpy as np
import pytest

from retbench.regress.interleaved import SampledRounds, sample
from retbench.regress.items import Times
from retbench.stats.intervals import geometric_interval
from retbench.stats.sequential import DecisionRules
from stats.corpus import Replay, read_corpus

ALARM_RUNS, MOVED_RUNS, MAX_ROUNDS = 500, 200, 20
ROUNDS_OF_A_HALF = 100
"""Least number of rounds from which others are drawn to test the rules."""
PAGE_FOLDER = Path(__file__).parents[2] / "docs"
PAGE = (PAGE_FOLDER / "checks.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=["idle", pytest.param("one core busy", marks=pytest.mark.slow)])
def machine(request: pytest.FixtureRequest) -> str:
    """The machine of one half of the corpus, as docs/checks.md names it."""
    return str(request.param)


@pytest.fixture(scope="module")
def rounds(machine: str) -> list[Times]:
    """One half of the corpus."""
    found = read_corpus()[machine == "one core busy"]
    assert len(found) >= ROUNDS_OF_A_HALF, "python -m benchmarks.aa adds rounds"
    return found


def documented(machine: str, column: str) -> str:
    """Return a cell of the table of error rates in docs/checks.md."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if re.match(rf"\| (machine|{machine}) \|", line)
    ]
    return dict(zip(*rows, strict=True))[column]


def run(rounds: list[Times], seed: int, factor: float = 1.0) -> SampledRounds:
    source = Replay(rounds, np.random.default_rng(seed), factor)
    return sample(sorted(rounds[0]), "transformer", source, DecisionRules(), MAX_ROUNDS)


def decode_curves(sampled: SampledRounds) -> list[str]:
    """Return the verdict on the decode curve of each model."""
    return [
        decision.verdict
        for item, decision in sampled.decisions.items()
        if item.kind == "curve" and item.points[0].workload == "decode"
    ]


def test_every_round_has_every_point(rounds: list[Times]) -> None:
    assert all(len(times) == 10 for times in rounds)


def test_identical_code_raises_an_alarm_in_one_run_of_a_hundred_at_most(
    rounds: list[Times], machine: str
) -> None:
    alarms = 0
    for seed in range(ALARM_RUNS):
        verdicts = {decision.verdict for decision in run(rounds, seed).decisions.values()}
        alarms += bool(verdicts & {"regressed", "improved"})
    assert alarms <= 0.01 * ALARM_RUNS
    assert documented(machine, "false alarms") == f"{alarms} of {ALARM_RUNS}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "share", "column"),
    [
        (1.05, 0.95, "5 % slower"),
        (1.10, 0.99, "10 % slower"),
        (1 / 1.05, 0.95, "5 % faster"),
        (1 / 1.10, 0.99, "10 % faster"),
    ],
)
def test_what_has_moved_is_found_within_twenty_rounds(
    rounds: list[Times], machine: str, factor: float, share: float, column: str
) -> None:
    """The decode times of both models move alike: what is to be found are their two curves."""
    verdict = "regressed" if factor > 1 else "improved"
    found = sum(decode_curves(run(rounds, seed, factor)) == [verdict, verdict] for seed in range(MOVED_RUNS))
    assert found >= share * MOVED_RUNS
    assert documented(machine, column) == f"{found} of {MOVED_RUNS}"


def test_the_page_names_the_rounds_of_the_corpus() -> None:
    total = sum(len(rounds) for rounds in read_corpus().values())
    assert f"replaying {total} recorded rounds" in PAGE


def test_a_ratio_is_in_its_interval_and_a_time_not_always_as_the_page_says(
    machine: str, rounds: list[Times]
) -> None:
    decode = sorted(point for point in rounds[0] if (point.workload, point.batch_size) == ("decode", 1))
    times = {point: np.array([measured[point][0] for measured in rounds]) for point in decode}
    retnet, transformer = (
        [times[point] for point in decode if point.model == model] for model in ("retnet", "transformer")
    )
    of_times, of_ratios = (
        f"{100 * np.mean([covered_share(series) for series in many]):.0f}"
        for many in (retnet + transformer, [a / b for a, b in zip(retnet, transformer, strict=True)])
    )
    faq = (PAGE_FOLDER / "faq.md").read_text(encoding="utf-8").replace("\n", " ")
    stated = re.search(
        r"in (\d+) % \(idle\) and (\d+) % \(one core busy\) of cases for the time .* in (\d+) and (\d+) % for",
        faq,
    )
    assert stated is not None
    assert (of_times, of_ratios) == stated.groups()[machine == "one core busy" :: 2]


def covered_share(series: np.ndarray[tuple[int], np.dtype[np.float64]], num_rounds: int = 5) -> float:
    """Return in which share of all runs of neighbouring rounds the interval holds the mean of the whole series."""
    mean, runs = np.exp(np.log(series).mean()), np.lib.stride_tricks.sliding_window_view(series, num_rounds)
    intervals = [geometric_interval(list(run)) for run in runs]
    return float(np.mean([bool(one.low <= mean <= one.high) for one in intervals]))
