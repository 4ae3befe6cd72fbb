"""Lines of outcomes, and when one says that a bar holds."""

import json
import math

import pytest
import torch

from benchmarks.peers.outcomes import Limit, Outcome, error_outcome, speed_outcome, worst

pytestmark = pytest.mark.peers


def test_a_line_has_the_promised_fields() -> None:
    line = json.loads(speed_outcome("speed", [1.0, 1.1, 1.2], [2.0, 2.2, 2.4], Limit(high=0.7)).to_json())
    assert list(line) == ["bar", "ours", "theirs", "ratio", "low", "high", "limit", "holds"]
    assert line["ratio"] == pytest.approx(0.5)
    assert line["ours"] == pytest.approx((1.0 * 1.1 * 1.2) ** (1 / 3))
    assert line["limit"] == 0.7
    assert line["holds"] is True


def test_a_speed_bar_holds_only_with_its_whole_interval() -> None:
    steady = speed_outcome("speed", [0.69, 0.69, 0.69], [1.0, 1.0, 1.0], Limit(high=0.7))
    noisy = speed_outcome("speed", [0.55, 0.69, 0.80], [1.0, 1.0, 1.0], Limit(high=0.7))
    assert steady.holds
    assert noisy.ratio < 0.7 < noisy.high
    assert not noisy.holds


def test_a_bar_with_a_lower_end_shows_both() -> None:
    outcome = Outcome("share", 20.0, 40.0, 0.5, 0.45, 0.55, Limit(low=0.4))
    assert json.loads(outcome.to_json())["limit"] == [0.4, None]
    assert outcome.holds
    assert not Outcome("share", 20.0, 40.0, 0.5, 0.39, 0.55, Limit(low=0.4)).holds


def test_one_round_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two"):
        speed_outcome("speed", [1.0], [2.0], Limit(high=0.7))


def test_an_error_is_the_largest_difference_over_the_rms() -> None:
    reference = torch.tensor([3.0, -3.0, 3.0, -3.0])
    outcome = error_outcome("error", reference + torch.tensor([0.0, 0.0, 0.3, -0.1]), reference, 0.2)
    assert outcome.ratio == pytest.approx(0.1)
    assert outcome.holds
    assert not error_outcome("error", reference + 0.9, reference, 0.2).holds


def test_what_is_not_a_number_never_holds() -> None:
    found = torch.tensor([1.0, math.nan])
    broken = error_outcome("error", found, torch.ones(2), 0.5)
    assert not broken.holds
    fine = error_outcome("error", torch.ones(2), torch.ones(2), 0.5)
    assert worst([fine, broken]) is broken
    assert worst([broken, fine]) is broken


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        error_outcome("error", torch.ones(1, 3), torch.ones(3), 0.5)
