import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from retbench.errors import RecordError
from retbench.stats.intervals import (
    crossover,
    geometric_interval,
    mean_interval,
    ratio_interval,
    slope_equivalence,
    unpaired_ratio_interval,
)

positive = st.floats(min_value=1e-6, max_value=1e6)
rounds = st.lists(positive, min_size=2, max_size=12)
LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768]


def test_interval_of_two_rounds_by_hand() -> None:
    found = geometric_interval([2.0, 8.0], 0.95)
    # Logarithms are log 4 -+ log 2; t with one degree of freedom is 12.7062; the standard error is log 2.
    assert found.value == pytest.approx(4)
    assert found.low == pytest.approx(4 * 2**-12.7062, rel=1e-4)
    assert found.high == pytest.approx(4 * 2**12.7062, rel=1e-4)
    assert found.num_rounds == 2


@given(rounds, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_students_t_on_the_logarithms(values: list[float], confidence: float) -> None:
    logs = np.log(values)
    assume(logs.std() > 1e-9)
    expected = stats.t.interval(confidence, len(values) - 1, loc=logs.mean(), scale=stats.sem(logs))
    assume(max(map(abs, expected)) < 700)  # its exponentials are numbers
    found = geometric_interval(values, confidence)
    assert found.low is not None
    assert found.high is not None
    assert (math.log(found.low), math.log(found.high)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(rounds)
def test_interval_of_a_mean_is_students_t(values: list[float]) -> None:
    assume(np.std(values) > 1e-9)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    found = mean_interval(values)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high), rel=1e-9)
    alone = mean_interval(values[:1])
    assert (alone.value, alone.low, alone.high, alone.num_rounds) == (values[0], None, None, 1)


@given(rounds, positive)
def test_interval_does_not_depend_on_the_unit(values: list[float], unit: float) -> None:
    plain, scaled = geometric_interval(values), geometric_interval([value * unit for value in values])
    for name in ("value", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name) * unit, rel=1e-6)


def test_one_round_gives_a_value_and_no_interval() -> None:
    found = geometric_interval([3.0])
    assert found.value == pytest.approx(3)
    assert (found.low, found.high, found.num_rounds) == (None, None, 1)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    truth, repeats = 0.01, 2000
    samples = truth * np.exp(generator.normal(0, 0.03, size=(repeats, 5)))
    found = [geometric_interval(row.tolist(), 0.95) for row in samples]
    covered = sum(item.low <= truth <= item.high for item in found if item.low and item.high)
    # Two thousand trials at 95 % have a standard deviation of 0.5 points.
    assert 0.935 <= covered / repeats <= 0.965


def test_an_end_that_no_double_holds_is_infinite() -> None:
    found = geometric_interval([1e-200, 1e200])
    assert (found.low, found.high) == (0.0, math.inf)


@given(rounds, st.data())
def test_what_a_round_does_to_both_sides_cancels(values: list[float], data: st.DataObject) -> None:
    noise = data.draw(st.lists(positive, min_size=len(values), max_size=len(values)))
    ours = [value * factor for value, factor in zip(values, noise, strict=True)]
    theirs = [2 * factor for factor in noise]
    expected = geometric_interval([value / 2 for value in values])
    found = ratio_interval(ours, theirs)
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    assert found.low == pytest.approx(expected.low, rel=1e-6)
    assert found.high == pytest.approx(expected.high, rel=1e-6)


@given(rounds)
def test_swapping_the_sides_inverts_the_ratio(values: list[float]) -> None:
    others = [1.0 + index for index in range(len(values))]
    forth, back = ratio_interval(values, others), ratio_interval(others, values)
    assert forth.low is not None
    assert back.high is not None
    assert forth.value * back.value == pytest.approx(1)
    assert math.log(forth.low) + math.log(back.high) == pytest.approx(0, abs=1e-6)


def test_sides_of_different_length_are_not_paired() -> None:
    with pytest.raises(RecordError, match="5 rounds on one side and 4 on the other"):
        ratio_interval([1.0] * 5, [1.0] * 4)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_value_that_is_no_cost_is_refused(value: float) -> None:
    with pytest.raises(RecordError, match=f"one of the values is {value}"):
        geometric_interval([1.0, value])
    with pytest.raises(RecordError, match="denominators"):
        ratio_interval([1.0], [value])
    with pytest.raises(RecordError, match="ratios"):
        crossover([1, 2], [[1.0, value]])
    with pytest.raises(RecordError, match="values"):
        slope_equivalence([1, 2], [[1.0, 1.0], [1.0, value]], 0.05)


def test_no_rounds_are_refused() -> None:
    for call in (
        lambda: geometric_interval([]),
        lambda: crossover([1, 2], []),
        lambda: slope_equivalence([1, 2], [], 0.05),
    ):
        with pytest.raises(RecordError, match="Measure at least one"):
            call()


@given(
    st.floats(min_value=1100, max_value=32000),
    st.floats(min_value=0.1, max_value=3),
    st.integers(min_value=1, max_value=6),
)
def test_crossover_of_a_power_law_is_exact(true_length: float, power: float, num_rounds: int) -> None:
    ratios = [(length / true_length) ** -power for length in LENGTHS]
    found = crossover(LENGTHS, [ratios] * num_rounds)
    assert found.kind == "at"
    assert found.value == pytest.approx(true_length)
    if num_rounds == 1:
        assert (found.low, found.high) == (None, None)
    else:
        assert found.low == pytest.approx(true_length)
        assert found.high == pytest.approx(true_length)
    assert found.note == ""


def test_crossover_between_two_lengths_by_hand() -> None:
    # From 4 to 1/2 over a doubling: log 4 of the way down log 8, which is two thirds of the doubling.
    found = crossover([1000, 2000], [[4.0, 0.5]])
    assert found.value == pytest.approx(1000 * 2 ** (2 / 3))


def test_crossover_interval_is_that_of_the_rounds_lengths() -> None:
    lengths_by_round = [3000.0, 4000.0, 5000.0]
    ratios = [[length_of_round / length for length in LENGTHS] for length_of_round in lengths_by_round]
    found, expected = crossover(LENGTHS, ratios), geometric_interval(lengths_by_round)
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )


@given(st.lists(st.floats(min_value=0.01, max_value=100), min_size=6, max_size=6), st.integers(2, 50))
def test_crossover_scales_with_the_unit_of_length(ratios: list[float], unit: int) -> None:
    plain = crossover(LENGTHS, [ratios])
    scaled = crossover([length * unit for length in LENGTHS], [ratios])
    assert plain.kind == scaled.kind
    if plain.value is not None:
        assert LENGTHS[0] <= plain.value <= LENGTHS[-1]
        assert scaled.value == pytest.approx(plain.value * unit)


def test_always_behind_puts_the_crossover_above_the_range() -> None:
    found = crossover(LENGTHS, [[1.2] * 6, [1.1] * 6])
    assert (found.kind, found.value, found.low, found.high) == ("none", None, 32768.0, None)


def test_equal_at_every_length_is_not_ahead() -> None:
    assert crossover(LENGTHS, [[1.0] * 6]).low == 32768.0


def test_always_ahead_puts_the_crossover_below_the_range() -> None:
    found = crossover(LENGTHS, [[0.9] * 6, [0.8] * 6])
    assert (found.kind, found.value, found.low, found.high) == ("none", None, None, 1024.0)


def test_ahead_and_fallen_back_is_no_crossover() -> None:
    found = crossover([1, 2, 4], [[2.0, 0.5, 2.0]])
    assert (found.kind, found.low) == ("none", 4.0)


def test_of_several_crossings_the_last_counts_and_the_note_says_so() -> None:
    found = crossover([1, 2, 4, 8], [[2.0, 0.5, 2.0, 0.5], [4.0, 4.0, 2.0, 0.5]])
    assert found.kind == "at"
    assert found.value == pytest.approx(math.sqrt(32))
    assert "1 of 2 rounds cross more than once" in found.note


def test_rounds_that_disagree_give_what_they_agree_on() -> None:
    crossing, behind, ahead = [2.0, 1.0, 0.5], [3.0, 2.0, 1.5], [0.9, 0.8, 0.7]
    lengths = [1000, 2000, 4000]
    above = crossover(lengths, [crossing, behind])
    assert (above.kind, above.high) == ("none", None)
    assert above.low == pytest.approx(2000)
    assert "2 rounds disagree: 1 crosses at 2,000 tokens" in above.note
    below = crossover(lengths, [crossing, ahead])
    assert (below.kind, below.low) == ("none", None)
    assert below.high == pytest.approx(2000)
    nothing = crossover(lengths, [ahead, behind])
    assert (nothing.kind, nothing.low, nothing.high) == ("none", None, None)
    assert "disagree" in nothing.note


def test_interval_beyond_the_lengths_measured_is_pointed_out() -> None:
    ratios = [[true_length / length for length in LENGTHS] for true_length in (2000.0, 30000.0)]
    assert "beyond the lengths measured" in crossover(LENGTHS, ratios).note


@given(st.floats(min_value=-2, max_value=2), positive, st.integers(min_value=2, max_value=6))
def test_slope_of_a_power_law_is_exact(power: float, unit: float, num_rounds: int) -> None:
    values = [[unit * length**power for length in LENGTHS]] * num_rounds
    found = slope_equivalence(LENGTHS, values, 0.05)
    true_ratio = 32.0**power
    assert found.ratio == pytest.approx(true_ratio)
    assert found.low == pytest.approx(true_ratio)
    assert found.high == pytest.approx(true_ratio)
    if abs(abs(true_ratio - 1) - 0.05) > 1e-6:
        assert found.equivalent == (0.95 < true_ratio < 1.05)


def test_one_round_shows_no_equivalence() -> None:
    found = slope_equivalence(LENGTHS, [[1.0] * 6], 0.05)
    assert found.ratio == pytest.approx(1)
    assert (found.low, found.high, found.equivalent) == (None, None, None)


@pytest.mark.parametrize("height", [1.5, 0.7])
def test_a_hump_that_a_line_does_not_see_is_not_level(height: float) -> None:
    values = [[1.0, height, height, height, height, 1.0]] * 2
    found = slope_equivalence(
        LENGTHS, [[value * unit for value in row] for row, unit in zip(values, (1, 2), strict=True)], 0.05
    )
    assert found.ratio == pytest.approx(1)
    assert found.equivalent is False
    assert found.differs
    assert found.apart is not None
    assert found.apart[0] in LENGTHS[1:-1]
    assert found.apart[1].value == pytest.approx(height)


def test_a_hump_that_noise_may_have_made_is_not_shown() -> None:
    found = slope_equivalence([1, 2, 4], [[1.0, 1.6, 1.0], [1.0, 0.9, 1.0]], 0.05)
    assert (found.apart, found.differs) == (None, False)


def test_of_many_lengths_at_the_margin_one_is_called_apart_in_one_of_twenty() -> None:
    generator, found = np.random.default_rng(2), 0
    for _ in range(1000):
        values = np.array([1.0, *[1.05] * 5]) * np.exp(generator.normal(0, 0.02, size=(10, 6)))
        found += slope_equivalence(LENGTHS, values.tolist(), 0.05).apart is not None
    assert found / 1000 <= 0.06


def test_noise_wider_than_the_margin_shows_no_equivalence() -> None:
    found = slope_equivalence([1, 2], [[1.0, 1.2], [1.0, 0.8], [1.0, 1.0]], 0.05)
    assert found.equivalent is False
    assert not found.differs


def claims(true_ratio: float, noise: float) -> float:
    """Share of 1,000 simulated experiments of five rounds that find the cost level within 5 %."""
    generator = np.random.default_rng(1)
    trend = np.log(LENGTHS) - np.log(LENGTHS[0])
    level = np.exp(np.log(true_ratio) * trend / trend[-1])
    found = 0
    for _ in range(1000):
        values = level * np.exp(generator.normal(0, noise, size=(5, len(LENGTHS))))
        found += slope_equivalence(LENGTHS, values.tolist(), 0.05).equivalent is True
    return found / 1000


def test_a_cost_at_the_margin_is_called_level_in_one_of_twenty() -> None:
    assert claims(1.05, 0.01) <= 0.07


def test_a_level_cost_with_little_noise_is_called_level() -> None:
    assert claims(1.0, 0.01) >= 0.95


def test_an_unpaired_ratio_has_welchs_interval() -> None:
    tops, bottoms = [2.0, 2.2, 1.9, 2.4], [1.0, 1.1, 0.8]
    found = unpaired_ratio_interval(tops, bottoms)
    expected = stats.ttest_ind(np.log(tops), np.log(bottoms), equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx(np.exp(np.log(tops).mean() - np.log(bottoms).mean()))
    assert found.low == pytest.approx(np.exp(expected.low))
    assert found.high == pytest.approx(np.exp(expected.high))
    assert found.num_rounds == 3


def test_an_unpaired_ratio_needs_two_rounds_on_each_side() -> None:
    found = unpaired_ratio_interval([2.0, 2.2], [1.0])
    assert (found.low, found.high, found.num_rounds) == (None, None, 1)


def test_an_unpaired_ratio_of_equal_counts_is_exact() -> None:
    found = unpaired_ratio_interval([4.0, 4.0], [2.0, 2.0])
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
