"""Labels: moved apart where they would touch, and no further."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from retbench.report.figures.labels import keep_inside, spread


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


@given(st.lists(st.floats(-50, 350), min_size=1, max_size=6), st.floats(1, 20))
def test_labels_that_leave_the_axes_are_moved_back(wanted: list[float], height: float) -> None:
    heights = [height] * len(wanted)
    places = keep_inside(spread(wanted, heights), heights, 300)
    assert min(places) >= height / 2
    assert max(places) <= 300 - height / 2
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for lower, upper in pairwise(order):
        assert places[upper] - places[lower] > 0.9 * height
