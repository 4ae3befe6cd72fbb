"""Labels: moved apart where they would touch, and no further."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from retbench.report.labels import raise_low, spread


@given(st.lists(st.floats(0, 150), min_size=1, max_size=6), st.floats(1, 20))
def test_labels_do_not_overlap_and_keep_their_order(wanted: list[float], height: float) -> None:
    places = spread(wanted, [height] * len(wanted))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for lower, upper in pairwise(order):
        assert places[upper] - places[lower] > 0.9 * height


@given(st.lists(st.integers(0, 10), min_size=1, max_size=6, unique=True))
def test_labels_with_room_stay_where_they_are(steps: list[int]) -> None:
    wanted = [20.0 * step for step in steps]
    assert spread(wanted, [18.0] * len(wanted)) == wanted


@given(st.lists(st.floats(-50, 150), min_size=1, max_size=6), st.floats(1, 20))
def test_labels_that_reach_below_the_axes_are_moved_up(wanted: list[float], height: float) -> None:
    heights = [height] * len(wanted)
    places = raise_low(spread(wanted, heights), heights)
    assert min(places) >= height / 2
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for lower, upper in pairwise(order):
        assert places[upper] - places[lower] > 0.9 * height
    assert all(place >= before for place, before in zip(places, spread(wanted, heights), strict=True))
