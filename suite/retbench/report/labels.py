"""Words in figures: names at the ends of lines, and notes where they cover least."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from retbench.report.style import MUTED, POINTS_PER_IN


@dataclass(frozen=True)
class Label:
    """Words beside a place in the data."""

    x: float
    y: float
    text: str
    colour: str
    is_bold: bool = True


def label_width_in(texts: Sequence[str]) -> float:
    """Inches that labels need at the right of a figure."""
    longest = max((len(line) for text in texts for line in text.split("\n")), default=0)
    return 0.12 + 0.0635 * longest


def label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Names beside the ends of lines, moved apart where they would touch, and none below the axes.

    Limits of the axes must be final.
    """
    low, high = axes.get_ylim()
    height_pt = axes.bbox.height / axes.figure.dpi * POINTS_PER_IN
    heights = [9.0 * (1 + label.text.count("\n")) for label in labels]
    wanted = [(label.y - low) / (high - low) * height_pt for label in labels]
    for label, want, place in zip(labels, wanted, raise_low(spread(wanted, heights), heights), strict=True):
        axes.annotate(
            label.text,
            xy=(label.x, label.y),
            xytext=(6, place - want),
            textcoords="offset points",
            color=label.colour,
            fontweight="bold" if label.is_bold else "normal",
            fontsize=6.8,
            va="center",
            linespacing=1.15,
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places near the `wanted` ones, in their order, no two closer than half the sum of their heights."""
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


def raise_low(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """The places with those that reach below zero moved up, and what they would touch then."""
    raised, top = list(places), 0.0
    for index in sorted(range(len(places)), key=lambda index: places[index]):
        raised[index] = max(places[index], top + heights[index] / 2)
        top = raised[index] + heights[index] / 2
    return raised


@dataclass(frozen=True)
class Place:
    """Where words may stand: a point, in data or as a fraction of the axes, and which side of it they are on."""

    x: float
    y: float
    x_in: Literal["data", "axes fraction"]
    right: bool
    above: bool


CORNERS = tuple(
    Place(x, y, "axes fraction", x < 0.5, y < 0.5)
    for x, y in ((0.03, 0.97), (0.03, 0.04), (0.97, 0.04), (0.97, 0.97))
)


def beside(x: float) -> tuple[Place, ...]:
    """Places on either side of a vertical line, from the top down."""
    return tuple(
        Place(x, y, "data", right, above=False) for y in (0.97, 0.8, 0.6, 0.4, 0.2) for right in (True, False)
    )


def add_note(axes: Axes, text: str, places: Sequence[Place]) -> None:
    """Small grey words at the place where they cover least of the lines and words there are, the first such one."""
    renderer = FigureCanvasAgg(axes.figure.figure).get_renderer()
    boxes = [words.get_window_extent(renderer) for words in axes.texts]
    points = [point for line in axes.lines for point in _walk(line)]

    def covered(place: Place) -> int:
        words = _note(axes, text, place)
        box = words.get_window_extent(renderer)
        words.remove()
        outside = box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1
        return int(
            1000 * outside
            + 50 * sum(box.overlaps(other) for other in boxes)
            + sum(box.contains(x, y) for x, y in points)
        )

    _note(axes, text, min(places, key=covered))


def _note(axes: Axes, text: str, place: Place) -> Annotation:
    """Words at a place."""
    return axes.annotate(
        text,
        xy=(place.x, place.y),
        xycoords=(place.x_in, "axes fraction"),
        xytext=((4 if place.right else -4) * (place.x_in == "data"), 0),
        textcoords="offset points",
        fontsize=6.2,
        color=MUTED,
        ha="left" if place.right else "right",
        va="bottom" if place.above else "top",
        linespacing=1.25,
    )


def _walk(line: Line2D) -> Iterator[tuple[float, float]]:
    """Points along a line as it is drawn, close enough that words on it cover one."""
    corners = line.get_transform().transform(np.asarray(line.get_xydata()))
    for start, end in pairwise(corners):
        for step in np.linspace(0, 1, 25):
            x, y = start + (end - start) * step
            yield float(x), float(y)
