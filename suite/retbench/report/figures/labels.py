"""Words in figures: names at the ends of curves, and notes where they cover least."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation

from retbench.report.figures.style import MUTED, POINTS_PER_IN, tag, text_width_pt

_LONGEST_NAME = 26
_LABEL_SIZE, _ASIDE_PT = 6.8, 6.0
"""Size of the names of curves, and their distance from the ends, in points."""
ABOVE_PT = 6.0
"""Height above the axes that labels may reach where nothing else stands there."""


@dataclass(frozen=True)
class Label:
    """Words to the right of a point in the units of the axes."""

    x: float
    y: float
    text: str
    colour: str
    is_bold: bool = True
    model: str | None = None

    @property
    def height_pt(self) -> float:
        """Height of its lines."""
        return 9.0 * (1 + self.text.count("\n"))


def shorten(name: str) -> str:
    """Return a name as far as a figure has room for it."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def label_width_in(texts: Sequence[str]) -> float:
    """Return the inches that labels need at the right of a figure: by their letters, or by wide ones as they are."""
    lines = [line for text in texts for line in text.split("\n")]
    longest = max(map(len, lines), default=0)
    widest_pt = max((text_width_pt(line, _LABEL_SIZE, "bold") for line in lines), default=0.0)
    return max(0.12 + 0.0635 * longest, 0.04 + (_ASIDE_PT + widest_pt) / POINTS_PER_IN)


def label_ends(
    axes: Axes,
    labels: Sequence[Label],
    *,
    aside_pt: float = _ASIDE_PT,
    above_pt: float = ABOVE_PT,
    **options: Any,
) -> None:
    """Write names beside the ends of curves, moved apart where they would touch, and none outside of the axes.

    The limits of the axes must be final. `above_pt` is free above them. The options are those of `add_text`.
    """
    points = POINTS_PER_IN / axes.figure.dpi
    heights, to_pixels = [label.height_pt for label in labels], axes.get_yaxis_transform()
    wanted = [float(to_pixels.transform((0, label.y))[1] - axes.bbox.y0) * points for label in labels]
    height_pt = axes.bbox.height * points
    placed = keep_inside(spread(wanted, heights), heights, height_pt + above_pt)
    for label, want, y_pt in zip(labels, wanted, placed, strict=True):
        words = add_text(
            axes,
            label.text,
            (label.x, label.y),
            "data",
            (aside_pt, y_pt - want),
            **{
                "color": label.colour,
                "fontweight": "bold" if label.is_bold else "normal",
                "fontsize": _LABEL_SIZE,
                "va": "center",
                "linespacing": 1.15,
                **options,
            },
        )
        if label.model is not None:
            tag(axes, label.model, [words])


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return positions near the `wanted` ones, in their order, none closer than half the sum of two heights."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = list(wanted)
    for _ in range(50):  # each pass halves what is left of an overlap
        moved = False
        for lower, upper in pairwise(order):
            lack = (heights[lower] + heights[upper]) / 2 - (places[upper] - places[lower])
            if lack > 1e-6:
                places[lower] -= lack / 2
                places[upper] += lack / 2
                moved = True
        if not moved:
            break
    return places


def keep_inside(places: Sequence[float], heights: Sequence[float], room: float) -> list[float]:
    """Return the positions with those above `room` moved down and then those below zero up, without overlaps."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    inside, ceiling, floor = list(places), room, 0.0
    for index in reversed(order):
        inside[index] = min(inside[index], ceiling - heights[index] / 2)
        ceiling = inside[index] - heights[index] / 2
    for index in order:
        inside[index] = max(inside[index], floor + heights[index] / 2)
        floor = inside[index] + heights[index] / 2
    return inside


class Anchor(NamedTuple):
    """A point where a note may stand, in data or as a fraction of the axes, and on which side of the point."""

    x: float
    y: float
    x_in: str
    right: bool
    above: bool


CORNERS = tuple(
    Anchor(x, y, "axes fraction", x < 0.5, y < 0.5)
    for x, y in ((0.03, 0.97), (0.03, 0.04), (0.97, 0.04), (0.97, 0.97))
)


def beside(x: float) -> tuple[Anchor, ...]:
    """Return anchors on either side of a vertical line, from the top down."""
    return tuple(
        Anchor(x, y, "data", right, above=False)
        for y in (0.97, 0.8, 0.6, 0.4, 0.2)
        for right in (True, False)
    )


def add_note(axes: Axes, anchors: Sequence[Anchor], *texts: str) -> None:
    """Write small grey words at the first anchor where they cover the fewest words and curves, if they have room.

    Of several texts the first one counts that covers the fewest.
    """
    renderer = FigureCanvasAgg(axes.figure.figure).get_renderer()
    boxes = [words.get_window_extent(renderer) for words in axes.texts]
    curves = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]

    def covered(choice: tuple[str, Anchor]) -> float:
        words = _note(axes, *choice)
        box = words.get_window_extent(renderer)
        words.remove()
        outside, figure = box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1, axes.figure.bbox
        if box.x0 < figure.x0 or box.x1 > figure.x1:
            return inf
        num_words = sum(box.overlaps(other) for other in boxes)
        num_curves = sum(bool(curve.intersects_bbox(box, filled=False)) for curve in curves)
        return 1000 * bool(outside) + 50 * num_words + num_curves

    best = min(((text, anchor) for text in texts for anchor in anchors), key=covered)
    if covered(best) < inf:
        _note(axes, *best)


def _note(axes: Axes, text: str, anchor: Anchor) -> Annotation:
    return add_text(
        axes,
        text,
        (anchor.x, anchor.y),
        (anchor.x_in, "axes fraction"),
        ((4 if anchor.right else -4) * (anchor.x_in == "data"), 0),
        color=MUTED,
        ha="left" if anchor.right else "right",
        va="bottom" if anchor.above else "top",
        linespacing=1.25,
    )


def add_text(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    coordinates: Any,
    offset_pt: tuple[float, float],
    **options: Any,
) -> Annotation:
    """Write small words at a distance in points from a place in the axes."""
    given = {"fontsize": 6.2, "annotation_clip": False, **options}
    return axes.annotate(
        text, xy=at, xycoords=coordinates, xytext=offset_pt, textcoords="offset points", **given
    )
