"""Labels: moved apart where they would touch, and no further."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from retbench.report.figures import style
from retbench.report.figures.labels import Label, keep_inside, label_ends, label_width_in, spread


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


@given(st.text("MWm&<>@%iRetN ", min_size=1, max_size=24))
def test_labels_beside_the_axes_end_within_the_figure(name: str) -> None:
    figure = Figure(figsize=(style.WIDTH_IN, 2.0))
    axes = figure.add_axes((0.1, 0.1, 0.9 - label_width_in([name]) / style.WIDTH_IN, 0.8))
    label_ends(axes, [Label(1.0, 0.5, name, "black")])
    renderer = FigureCanvasAgg(figure).get_renderer()
    (words,) = axes.texts
    assert words.get_window_extent(renderer).x1 <= figure.bbox.x1
