"""The look of every figure: sizes, type, colours and axes.

A figure is as wide as a journal's column and is set at that size, so that its type is legible in print and on
a phone. Only matplotlib's object interface is used: no global state is left behind.
"""

import logging
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import ceil, floor, log, log10
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font_names
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

from retbench.units import format_bytes, format_rate, format_tokens

WIDTH_IN = 3.5
"""A column of most two-column journals."""
FOOTER_IN = 0.34
"""Height of the strip at the foot that holds the conditions."""
HEADER_IN = 0.51
"""Height of the strip at the head: title, subtitle, and a line for panel titles and failures."""
BASE_IN = FOOTER_IN + 0.33
"""Height below the lowest axes: the conditions, the name of the axis and its ticks."""
POINTS_PER_IN = 72.0
_EDGE_IN = 0.06
"""Space between the edge of a figure and its words."""
_SUBTITLE_PT = 6.5
_LONGEST_TITLE = 44
"""Letters of a title that have room in the usual size."""
LINEAR_EDGE = 1.06
"""The right end of a linear axis over its last tick."""
_BYTES_TICK_IN = 0.42
"""Room for the label of a tick of bytes."""
_LETTER_IN, _POINT_IN, _GAP_IN = 0.062, 0.031, 0.018
"""Widths of a letter and of a decimal point in the label of a tick, and the least space between two labels."""
_BEYOND_IN = 0.15
"""Greatest reach of the label of a tick beyond its axes."""
LENGTH_LABEL = "context length, tokens"
LOG_LENGTH_LABEL = f"{LENGTH_LABEL} (log scale)"
STATE_LABEL = "state or cache, bytes per sequence (log scale)"

INK, MUTED, GRID, PAPER, NEUTRAL = "#1b1f24", "#5f6771", "#dfe2e6", "#ffffff", "#c6cbd1"
DOTTED: Any = {"color": INK, "linewidth": 0.8, "linestyle": (0, (1, 1.6))}
"""Look of a line that a formula or a fit gives."""
MARKER_EDGE: Any = {"markeredgecolor": PAPER, "markeredgewidth": 0.4}
"""Edge that sets a marker off from what it covers."""
GUIDE: Any = {"color": MUTED, "linewidth": 0.7, "linestyle": (0, (2, 2)), "zorder": 1}
"""Look of a dashed line that the curves are compared with."""

RC: Any = {  # Any: newer versions of matplotlib name every key in the type, older ones say str
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 6.8,
    "axes.titleweight": "bold",
    "axes.titley": 1.0,  # titles stay: no search for ticks that they might touch, at each drawing
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "font.size": 7.0,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "legend.fontsize": 6.2,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.9,
    "svg.fonttype": "path",
    "svg.hashsalt": "retbench",
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is no formula
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0.0,
}


_EAST_ASIAN = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
)
"""Fonts of Linux, Windows and macOS for names of models, corpora and experiments in Chinese, Japanese or Korean."""


class Mark(NamedTuple):
    """A point of a figure with its value in words: 'RetNet, 32K: 6.4 [6.2, 6.7] ms'."""

    axes: Axes
    model: str
    at: tuple[float, float]
    text: str

    def place(self, figure: Figure) -> tuple[float, float]:
        """Return the place from the lower left corner of the figure, in points; that of values above at the edge."""
        x, y = self.axes.transData.transform(self.at)
        y = min(float(y), self.axes.bbox.y1)
        return float(x) / figure.dpi * POINTS_PER_IN, y / figure.dpi * POINTS_PER_IN


class ReportFigure(Figure):
    """A figure that keeps its subtitle, and the values of its points in words."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.marks: list[Mark] = []
        self.subtitle: Text | None = None


def mark(axes: Axes, model: str, at: tuple[float, float], text: str) -> None:
    """Add the value of a point in words, for the page.

    Args:
        axes: Axes of a `ReportFigure`.
        model: Name of the model.
        at: The point, in the units of the axes.
        text: Name of the curve, a comma, the place, a colon, and the value with its unit.
    """
    figure = axes.figure.figure
    if isinstance(figure, ReportFigure):
        figure.marks.append(Mark(axes, model, at, text))


def marks_of(figure: Figure) -> list[Mark]:
    """Return the values of the points of a figure."""
    return figure.marks if isinstance(figure, ReportFigure) else []


def extend_subtitle(figure: Figure, words: Sequence[str]) -> None:
    """Add words to the subtitle of a `ReportFigure`, in smaller type where it is wider than the figure then."""
    if isinstance(figure, ReportFigure) and figure.subtitle is not None:
        text = "; ".join(filter(None, [figure.subtitle.get_text(), *words]))
        figure.subtitle.set(text=text, fontsize=_fitting_pt(text, _SUBTITLE_PT))


def _fitting_pt(line: str, size_pt: float) -> float:
    """Return the size at which a line of text fits into a figure, at most `size_pt`."""
    room_pt, width_pt = (WIDTH_IN - 2 * _EDGE_IN) * POINTS_PER_IN, text_width_pt(line, size_pt)
    # Coarse pixels round small type up by as much as a fourteenth.
    return size_pt if width_pt <= room_pt else 0.93 * size_pt * room_pt / width_pt


@cache
def text_width_pt(line: str, size_pt: float, weight: str = "normal") -> float:
    """Return the points that a line of text takes."""
    font = FontProperties(size=size_pt, weight=weight)
    width, _, _ = RendererAgg(1, 1, POINTS_PER_IN).get_text_width_height_descent(line, font, ismath=False)
    return float(width)


def has_room(axes: Axes, line: str, x: float, aside_pt: float, size_pt: float) -> bool:
    """Return whether a line of text fits into the figure to the right of a place of the axes, or, below 0, to the left.

    The limits of the axes must be final.
    """
    at_pt = float(axes.transData.transform((x, 1.0))[0]) / axes.figure.dpi * POINTS_PER_IN + aside_pt
    room_pt = at_pt if aside_pt < 0 else WIDTH_IN * POINTS_PER_IN - at_pt
    return text_width_pt(line, size_pt) <= room_pt - _EDGE_IN * POINTS_PER_IN


def tag(axes: Axes, model: str, artists: Iterable[Artist]) -> None:
    """Give the name of a model to what is drawn of it, so that the page can hide it; `model_of` returns the name."""
    place = axes.figure.figure.axes.index(axes)
    for artist in artists:
        number = len(axes.lines) + len(axes.collections) + len(axes.texts) + len(axes.patches)
        artist.set_gid(f"model-{place}-{number}-{model}")


def model_of(identity: str) -> str | None:
    """Return the model that `tag` has given to an element; None for other elements."""
    found = re.fullmatch(r"model-\d+-\d+-(.*)", identity, flags=re.DOTALL)
    return found[1] if found else None


@contextmanager
def house_style() -> Iterator[None]:
    """Set matplotlib's options while a figure is made or saved; afterwards the earlier ones are restored."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the second font need not have every weight
    try:
        with mpl.rc_context(), warnings.catch_warnings():
            mpl.rcdefaults()
            mpl.rcParams.update(RC | {"font.family": _families()})
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing")  # the figure shows a box in its place
            yield
    finally:
        logger.setLevel(level)


@cache
def _families() -> list[str]:
    """Return the font that comes with matplotlib, the same everywhere, and one for the letters that it lacks."""
    installed = {*get_font_names()}
    return ["DejaVu Sans", *[name for name in _EAST_ASIAN if name in installed][:1]]


def new_panels(
    texts: tuple[str, str, str],
    shares: Sequence[float],
    labels: Sequence[str],
    *,
    row_in: float,
    right_in: float = 0.1,
    left_in: float = 0.38,
    top_in: float = HEADER_IN,
    gap_in: float = 0.0,
    least_in: float = 0.0,
    count: int | None = None,
) -> tuple[Figure, list[Axes]]:
    """Return a new figure and its axes, row by row from the top; those of one row share a vertical axis.

    Args:
        texts: Title, subtitle and conditions.
        shares: Share of the width of each column.
        labels: Name of the horizontal axis of each row; it may be empty.
        row_in: Inches that a row is high; rows are higher where the figure is as low as it may be.
        right_in: Inches kept free at the right for labels.
        left_in: Inches kept free at the left for the ticks of the vertical axis.
        top_in: Inches kept free above the first row.
        gap_in: Inches between two rows.
        least_in: Least height of the figure.
        count: Number of axes, where the last row is not full.
    """
    num_rows, aside_in = len(labels), 0.16
    height_in = max(least_in, top_in + num_rows * (row_in + gap_in) - gap_in + BASE_IN)
    figure = _new_figure(height_in, *texts)
    rows_in = height_in - BASE_IN - top_in - gap_in * (num_rows - 1)
    columns_in = WIDTH_IN - left_in - right_in - aside_in * (len(shares) - 1)
    rows = figure.subplots(
        num_rows,
        len(shares),
        sharey="row",
        squeeze=False,
        width_ratios=shares,
        gridspec_kw={
            "left": left_in / WIDTH_IN,
            "right": 1 - right_in / WIDTH_IN,
            "bottom": BASE_IN / height_in,
            "top": 1 - top_in / height_in,
            "wspace": aside_in * len(shares) / columns_in,
            "hspace": gap_in * num_rows / rows_in,
        },
    )
    for row, label in zip(rows, labels, strict=True):
        first, last = row[0].get_position(), row[-1].get_position()
        middle = max(
            (first.x0 + last.x1) / 2, (_EDGE_IN + 0.0245 * len(label)) / WIDTH_IN
        )  # not cut at the left
        figure.text(middle, first.y0 - 0.3 / height_in, label, fontsize=6.5, color=MUTED, ha="center")
        for axes in row[1:]:
            axes.spines["left"].set_visible(False)
    panels = [axes for row in rows for axes in row]
    for unused in panels[len(panels) if count is None else count :]:
        unused.remove()
    return figure, panels[:count]


def _new_figure(height_in: float, title: str, subtitle: str, conditions: str) -> Figure:
    """Return an empty figure of the standard width with its title, and its conditions at the foot."""
    figure = ReportFigure(figsize=(WIDTH_IN, height_in))
    FigureCanvasAgg(figure)
    left = _EDGE_IN / WIDTH_IN
    size = min(8.5, 8.5 * _LONGEST_TITLE / max(1, len(title)))
    figure.text(left, 1 - 0.05 / height_in, title, fontsize=size, fontweight="bold", va="top")
    figure.subtitle = figure.text(left, 1 - 0.235 / height_in, subtitle, color=MUTED, va="top")
    extend_subtitle(figure, [])
    lines = textwrap.wrap(conditions, width=90, break_long_words=True, max_lines=4, placeholder=" …")
    figure.text(
        left, 0.03 / height_in, "\n".join(lines), fontsize=4.8, color=MUTED, va="bottom", linespacing=1.1
    )
    return figure


def _set_ticks(axes: Axes, places: Sequence[float], texts: Sequence[str]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_major_formatter(FixedFormatter(list(texts)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def write_length(x: float) -> str:
    """Write a context length at a tick."""
    return format_tokens(int(x))


def _width_in(axes: Axes) -> float:
    return axes.get_position().width * WIDTH_IN


def set_length_axis(
    axes: Axes, lengths: Sequence[float], write: Callable[[float], str] = write_length
) -> None:
    """Make a logarithmic axis of context lengths or batch sizes; ticks that have no room are left out."""
    axes.set_xscale("log", base=2)
    margin = 2**0.42
    low, high = min(lengths) / margin, max(lengths) * margin
    width_in = _width_in(axes)
    _set_places(axes, lengths, lambda x: width_in * log(x / low) / log(high / low), 0.27, write)
    axes.set_xlim(low, high)


def set_linear_length_axis(
    axes: Axes, lengths: Sequence[float], write: Callable[[float], str] = write_length
) -> None:
    """Make a linear axis of context lengths or batch sizes from zero; ticks that have no room are left out.

    A single length stands in the middle.
    """
    longest = max(lengths)
    width_in = _width_in(axes) / LINEAR_EDGE
    _set_places(axes, lengths, lambda x: x / longest * width_in, 0.2, write)
    axes.set_xlim(0, longest * (LINEAR_EDGE if len(lengths) > 1 else 2))


def _set_places(
    axes: Axes,
    places: Sequence[float],
    at_in: Callable[[float], float],
    apart_in: float,
    write: Callable[[float], str],
) -> None:
    """Set ticks at these places from the largest down, each as far from the last one as its label is wide.

    A label that would reach far beyond the axes, into the next ones, is left out.

    Args:
        axes: The axes.
        places: Places of the points.
        at_in: Returns the place along the axis in inches.
        apart_in: Least inches between two ticks; long labels need more.
        write: Writes a place.
    """
    label_in = _LETTER_IN * max(len(write(place)) for place in places)
    apart_in, end_in = max(apart_in, label_in + _GAP_IN), _width_in(axes) + _BEYOND_IN
    shown: list[float] = []
    for place in sorted(places, reverse=True):
        is_inside = len(places) == 1 or at_in(place) + label_in / 2 <= end_in
        if is_inside and (not shown or at_in(shown[-1]) - at_in(place) >= apart_in):
            shown.append(place)
    _set_ticks(axes, shown, [write(place) for place in shown])
    axes.fmt_xdata = write


def set_count_axis(axes: Axes, counts: Sequence[float], describe: Callable[[float], str]) -> None:
    """Make a logarithmic axis with a tick at each of these rising counts, labelled where there is room."""
    labels = [describe(count) for count in counts]
    axes.set_xscale("log")
    low, high = _log_limits(counts)
    width_in = free_in = _width_in(axes)
    shown = list[str]()
    for count, label in zip(reversed(counts), reversed(labels), strict=True):
        middle_in = width_in * log(count / low) / log(high / low)
        half_in = (_LETTER_IN * len(label) - (_LETTER_IN - _POINT_IN) * label.count(".")) / 2
        has_room = not shown or middle_in + half_in <= free_in
        shown.append(label if has_room else "")
        free_in = middle_in - half_in - _GAP_IN if has_room else free_in
    _set_ticks(axes, counts, shown[::-1])
    axes.fmt_xdata = lambda x: labels[min(range(len(counts)), key=lambda index: abs(counts[index] - x))]
    axes.set_xlim(low, high)


def set_bytes_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """Make a logarithmic axis of bytes with ticks at powers of two; at the sizes where at most one would be on it."""
    low, high = _log_limits(sizes)
    for step in (1, 2, 4, 8):
        ticks = [2.0**power for power in range(0, 64, step) if low <= 2**power <= high]
        if len(ticks) * _BYTES_TICK_IN <= _width_in(axes):
            break
    if len(ticks) < 2:
        set_count_axis(axes, sizes, format_bytes)
        return
    axes.set_xscale("log", base=2)
    _set_ticks(axes, ticks, [re.sub(r"\.0+(?= )", "", format_bytes(tick)) for tick in ticks])
    axes.fmt_xdata = format_bytes
    axes.set_xlim(low, high)


def _log_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis that has these values on it."""
    margin = (max(values) / min(values)) ** 0.11 if max(values) > min(values) else 1.5
    return min(values) / margin, max(values) * margin


def set_value_axis(axes: Axes, top: float, low: float | None = None) -> None:
    """Make a linear vertical axis with light lines across.

    Args:
        axes: The axes.
        top: Highest value; the axis ends a little above it.
        low: Lowest value of a quantity without a meaningful zero; the axis starts at zero when None.
    """
    if low is None:
        axes.set_ylim(0, top * 1.1 if top > 0 else 1)
    else:
        margin = 0.07 * (top - low) or 0.05 * abs(top) or 1.0
        axes.set_ylim(low - margin, top + margin)
    axes.yaxis.set_major_locator(round_ticks(5))
    if top >= 10_000:
        axes.yaxis.set_major_formatter(lambda tick, _: _write_value(tick))
    axes.grid(axis="y")


def _write_value(tick: float) -> str:
    """Write a number at a tick, from 100,000 on with a prefix: longer ones have no room."""
    if abs(tick) < 100_000:
        return f"{tick:,.6g}"
    number, prefix = format_rate(tick, "").split(" ")
    return f"{float(number):g} {prefix}"


def round_ticks(most: int) -> MaxNLocator:
    """Return what sets at most so many steps between ticks, at round numbers."""
    return MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10])


def set_log_value_axis(axes: Axes, low: float, high: float) -> None:
    """Make a logarithmic vertical axis that spans two values above zero, with light lines across."""
    margin = max((high / low) ** 0.07, 1.06)
    low, high = low / margin, high * margin
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = [
            digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high
        ]
        if len(ticks) >= 3:
            break
    else:
        ticks = [tick for tick in round_ticks(4).tick_values(low, high) if low <= tick <= high]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([_write_value(tick) for tick in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y")
