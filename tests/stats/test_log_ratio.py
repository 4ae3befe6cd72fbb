import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from retbench.errors import RecordError
from retbench.stats.intervals import LogRatio, paired, predicted_from, ratio_interval, unpaired
from stats.noise import log_medians

logs = st.lists(st.floats(-1, 1), min_size=2, max_size=20)
TRIALS = 2000


@given(logs, st.floats(-0.5, 0.5))
def test_a_paired_test_is_students(values: list[float], margin: float) -> None:
    assume(np.std(values) > 1e-6)
    expected = stats.ttest_1samp(values, margin, alternative="greater").pvalue
    assert paired(values).p_above(margin) == pytest.approx(expected, abs=1e-9)


@given(logs, logs, st.floats(-0.5, 0.5))
def test_an_unpaired_test_is_welchs(first: list[float], second: list[float], margin: float) -> None:
    assume(min(np.std(first), np.std(second)) > 1e-6)
    shifted = [value - margin for value in second]
    expected = stats.ttest_ind(shifted, first, equal_var=False, alternative="greater").pvalue
    assert unpaired(first, second).p_above(margin) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=12), st.data())
def test_the_interval_is_that_of_paired_ratios(base: list[float], data: st.DataObject) -> None:
    head = data.draw(st.lists(st.floats(0.1, 10), min_size=len(base), max_size=len(base)))
    ratios = [math.log(mine / theirs) for mine, theirs in zip(head, base, strict=True)]
    assume(np.std(ratios) > 1e-6)
    expected, found = ratio_interval(head, base), paired(ratios).interval()
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )


@given(logs, st.floats(-0.5, 0.5))
def test_exchanging_the_sides_exchanges_the_tests(values: list[float], margin: float) -> None:
    forth, back = paired(values), paired([-value for value in values])
    assert forth.p_above(margin) == pytest.approx(back.p_below(-margin), abs=1e-9)


def test_a_prediction_by_hand() -> None:
    # Mean 0.1, standard deviation 0.1, three runs: 0.1 * sqrt(1 + 1/3).
    found = predicted_from([0.0, 0.1, 0.2], 0.5)
    assert found.estimate == pytest.approx(0.4)
    assert found.error == pytest.approx(0.1 * math.sqrt(4 / 3))
    assert (found.degrees, found.num_rounds) == (2, 3)


@pytest.mark.parametrize(
    "found",
    [paired([0.3]), unpaired([0.0], [0.3, 0.4]), unpaired([0.1, 0.2], [0.3]), predicted_from([0.0], 0.3)],
)
def test_one_round_shows_nothing(found: LogRatio) -> None:
    assert found.p_above(-10) == found.p_below(10) == 1
    assert (found.interval().low, found.detectable(0.02, 0.05)) == (None, None)


@pytest.mark.parametrize(
    "found", [paired([0.1] * 3), unpaired([0.2] * 3, [0.3] * 4), predicted_from([0.2] * 8, 0.3)]
)
def test_rounds_without_any_noise_show_what_they_are(found: LogRatio) -> None:
    assert (found.p_above(0.05), found.p_above(0.1 + 1e-9), found.p_below(0.2)) == (0, 1, 0)
    assert found.interval().low == found.interval().high == pytest.approx(math.exp(0.1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    for call in (
        lambda: paired([0.0, value]),
        lambda: unpaired([0.0, value], [0.0, 0.0]),
        lambda: predicted_from([0.0, 0.0], value),
    ):
        with pytest.raises(RecordError, match="not finite"):
            call()
    with pytest.raises(RecordError, match="nothing to compare"):
        paired([])


def test_what_is_called_detectable_is_found_in_four_of_five() -> None:
    rng = np.random.default_rng(3)
    margin, level, spread = math.log(1.02), 0.01, 0.02
    effect = paired(rng.normal(0, spread, 200).tolist())  # a good estimate of the spread alone
    exact = LogRatio(0, spread / math.sqrt(10), 9, 10)
    least = exact.detectable(margin, level)
    assert effect.error * math.sqrt(200) == pytest.approx(spread, rel=0.1)
    assert least is not None
    runs = rng.normal(math.log1p(least), spread, size=(TRIALS, 10))
    found = sum(paired(row.tolist()).p_above(margin) <= level for row in runs)
    assert 0.75 <= found / TRIALS <= 0.85


@pytest.mark.parametrize("num_rounds", [5, 10, 20])
@pytest.mark.parametrize("session_sd", [0.005, 0.05])
def test_paired_intervals_cover_what_they_say(num_rounds: int, session_sd: float) -> None:
    """Nominal 95 % intervals under outliers, correlated iterations and a session that shifts both sides of a round."""
    rng = np.random.default_rng(num_rounds)
    truth = math.log(1.03)
    sides = log_medians(rng, (TRIALS, num_rounds, 2)) + rng.normal(
        0, session_sd, size=(TRIALS, num_rounds, 1)
    )
    ratios = sides[..., 1] + truth - sides[..., 0]
    intervals = [paired(row.tolist()).interval() for row in ratios]
    covered = sum(
        one.low <= 1.03 <= one.high for one in intervals if one.low is not None and one.high is not None
    )
    assert 0.92 <= covered / TRIALS <= 0.98


@pytest.mark.parametrize("num_runs", [8, 20])
@pytest.mark.parametrize("session_sd", [0.005, 0.05])
def test_predictions_cover_the_next_run(num_runs: int, session_sd: float) -> None:
    """Each run is a session of its own, of five processes; the interval is for the run that comes next."""
    rng = np.random.default_rng(num_runs)
    sessions = rng.normal(0, session_sd, size=(TRIALS, num_runs + 1))
    runs = log_medians(rng, (TRIALS, num_runs + 1, 5)).mean(axis=2) + sessions
    intervals = [predicted_from(row[:-1].tolist(), float(row[-1])).interval() for row in runs]
    covered = sum(
        one.low <= 1 <= one.high for one in intervals if one.low is not None and one.high is not None
    )
    assert 0.92 <= covered / TRIALS <= 0.98
