"""The house style of every figure, in one place: sizes, type, colours, axes, labels, and how it is saved.

A figure is as wide as a journal's column and is set at that size, so that its type is legible in print and on
a phone. Colours are Okabe and Ito's, which colour-blind people can tell apart; a model has one colour and one
marker everywhere. Only matplotlib's object interface is used: no state is left behind.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

from retbench.units import format_tokens

WIDTH_IN = 3.5
"""A column of most two-column journals."""
FOOTER_IN = 0.34
"""Height of the strip at the foot that holds the conditions."""
HEADER_IN = 0.51
"""Height of the strip at the head: heading, subtitle, and a line for panel titles and failures."""
POINTS_PER_IN = 72.0
LINEAR_EDGE = 1.06
"""The right end of a linear axis over its last place."""

INK, MUTED, GRID, PAPER, NEUTRAL = "#1b1f24", "#5f6771", "#dfe2e6", "#ffffff", "#c6cbd1"

RC: Any = {  # Any: newer versions of matplotlib name every key in the type, older ones say str
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 7.0,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
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


@dataclass(frozen=True)
class Look:
    """How one model looks: `line` for marks, `text` dark enough to be read, `tint` for its lighter areas."""

    line: str
    text: str
    tint: str
    marker: str


LOOKS = (
    Look("#0072b2", "#00629a", "#9ccbe8", "o"),
    Look("#d55e00", "#ac4c00", "#f3b98f", "s"),
    Look("#009e73", "#007756", "#8fd6bf", "^"),
    Look("#cc79a7", "#a04b7a", "#e9c3d8", "D"),
)


_DARK_LOOKS = (
    Look("#56b4e9", "#7cc6f0", "#285873", "o"),
    Look("#e69f00", "#f0b840", "#7a5706", "s"),
    Look("#2bbf93", "#5ad3ae", "#125c46", "^"),
    Look("#d991b8", "#e6b3cf", "#6e4159", "D"),
)


HOLLOW = {"o": "○", "s": "□", "^": "△", "D": "◇"}
"""The character that looks like a marker that is not filled."""


def look(index: int) -> Look:
    """The look of the model that stands at `index` in the lineup."""
    return LOOKS[index % len(LOOKS)]


def css_colours() -> dict[str, tuple[str, str]]:
    """Every colour by a name for style sheets: as in the files, and on a dark page.

    The dark ones are of the same hues, lighter; blue and vermillion become Okabe and Ito's sky blue and orange.
    """
    colours = {
        "ink": (INK, "#e8eaed"),
        "muted": (MUTED, "#a2abb5"),
        "grid": (GRID, "#343a41"),
        "paper": (PAPER, "#14171a"),
        "neutral": (NEUTRAL, "#59616b"),
    }
    for number, (light, dark) in enumerate(zip(LOOKS, _DARK_LOOKS, strict=True)):
        colours[f"line{number}"] = (light.line, dark.line)
        colours[f"text{number}"] = (light.text, dark.text)
        colours[f"tint{number}"] = (light.tint, dark.tint)
    return colours


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's settings while a figure is made or saved; what was set before is put back."""
    with mpl.rc_context():
        mpl.rcdefaults()
        with mpl.rc_context(RC):
            yield


def new_figure(height_in: float, title: str, subtitle: str, conditions: str) -> Figure:
    """An empty figure of the house's width with its heading, and its conditions at the foot."""
    figure = Figure(figsize=(WIDTH_IN, height_in))
    FigureCanvasAgg(figure)
    left = 0.06 / WIDTH_IN
    figure.text(left, 1 - 0.05 / height_in, title, fontsize=8.5, fontweight="bold", va="top")
    figure.text(left, 1 - 0.235 / height_in, subtitle, fontsize=6.5, color=MUTED, va="top")
    lines = textwrap.wrap(conditions, width=90, break_long_words=True, max_lines=4, placeholder=" …")
    figure.text(
        left, 0.04 / height_in, "\n".join(lines), fontsize=4.8, color=MUTED, va="bottom", linespacing=1.25
    )
    return figure


LENGTH_LABEL = "context length, tokens (log scale)"


def add_panels(
    figure: Figure,
    shares: Sequence[float],
    *,
    right_in: float,
    label: str = LENGTH_LABEL,
    left_in: float = 0.38,
) -> list[Axes]:
    """Axes side by side between heading and foot that share a y axis.

    Args:
        figure: From `new_figure`.
        shares: Of the width that each panel gets.
        right_in: Inches kept free at the right for labels.
        label: Of the x axis that they share.
        left_in: Inches kept free at the left for the labels of the y axis.
    """
    height_in = float(figure.get_figheight())
    bottom_in, gap_in = FOOTER_IN + 0.33, 0.16
    inner = WIDTH_IN - left_in - right_in - gap_in * (len(shares) - 1)
    panels: list[Axes] = []
    for share in shares:
        width = inner * share / sum(shares)
        box = (
            left_in / WIDTH_IN,
            bottom_in / height_in,
            width / WIDTH_IN,
            (height_in - bottom_in - HEADER_IN) / height_in,
        )
        panels.append(figure.add_axes(box, sharey=panels[0] if panels else None))
        left_in += width + gap_in
        if len(panels) > 1:
            panels[-1].tick_params(labelleft=False)
            panels[-1].spines["left"].set_visible(False)
    middle = (panels[0].get_position().x0 + panels[-1].get_position().x1) / 2
    figure.text(
        middle,
        (FOOTER_IN + 0.03) / height_in,
        label,
        fontsize=6.5,
        color=MUTED,
        ha="center",
    )
    return panels


def add_rows(
    figure: Figure, labels: Sequence[str], *, right_in: float, gap_in: float = 0.4, top_in: float = HEADER_IN
) -> list[Axes]:
    """Axes one above the other between heading and foot, from the top down.

    Args:
        figure: From `new_figure`.
        labels: What is along the x axis of each; empty for none, and then `gap_in` need not hold it.
        right_in: Inches kept free at the right for labels.
        gap_in: Inches between two.
        top_in: Inches kept free above the first.
    """
    height_in, count = float(figure.get_figheight()), len(labels)
    left_in, bottom_in = 0.52, FOOTER_IN + 0.33
    each_in = (height_in - bottom_in - top_in - gap_in * (count - 1)) / count
    width_in = WIDTH_IN - left_in - right_in
    middle, rows = (left_in + width_in / 2) / WIDTH_IN, []
    for index, label in enumerate(labels):
        base_in = height_in - top_in - (index + 1) * each_in - index * gap_in
        box = (left_in / WIDTH_IN, base_in / height_in, width_in / WIDTH_IN, each_in / height_in)
        rows.append(figure.add_axes(box))
        if label:
            label_in = base_in - 0.3
            figure.text(middle, label_in / height_in, label, fontsize=6.5, color=MUTED, ha="center")
    return rows


def set_linear_length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """A linear axis of context lengths or batch sizes from zero, ticked at those measured that have room.

    The longest comes first.
    """
    longest = max(lengths)
    width_in = axes.get_position().width * WIDTH_IN / LINEAR_EDGE
    shown: list[int] = []
    for length in sorted(lengths, reverse=True):
        if not shown or (shown[-1] - length) / longest * width_in >= 0.2:
            shown.append(length)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([format_tokens(length) for length in shown]))
    axes.set_xlim(0, longest * LINEAR_EDGE)


def set_length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """A logarithmic axis of context lengths or batch sizes, ticked at those measured (not at all where crowded)."""
    axes.set_xscale("log", base=2)
    width_in = axes.get_position().width * WIDTH_IN
    step = 1 + int(len(lengths) * 0.27 / width_in)
    shown = list(lengths)[::-1][::step][::-1]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([format_tokens(length) for length in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    margin = 2**0.42
    axes.set_xlim(min(lengths) / margin, max(lengths) * margin)


def set_value_axis(axes: Axes, top: float) -> None:
    """A linear axis from zero to a little above `top`, with light lines across."""
    axes.set_ylim(0, top * 1.1 if top > 0 else 1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y")


def set_range_axis(axes: Axes, low: float, high: float) -> None:
    """A linear axis a little beyond `low` and `high`, for what has no meaningful zero, with light lines across."""
    margin = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y")


def set_count_axis(axes: Axes, counts: Sequence[float], labels: Sequence[str]) -> None:
    """A logarithmic axis of counts, ticked at these, and labelled where there is room; they rise."""
    axes.set_xscale("log")
    margin = (max(counts) / min(counts)) ** 0.08 if max(counts) > min(counts) else 1.5
    low, high = min(counts) / margin, max(counts) * margin
    width_in = axes.get_position().width * WIDTH_IN
    shown, free_in = list[str](), width_in
    for count, label in zip(reversed(counts), reversed(labels), strict=True):
        middle_in, half_in = width_in * log(count / low) / log(high / low), 0.03 * len(label)
        has_room = not shown or middle_in + half_in <= free_in
        shown.append(label if has_room else "")
        free_in = middle_in - half_in - 0.03 if has_room else free_in
    axes.xaxis.set_major_locator(FixedLocator(list(counts)))
    axes.xaxis.set_major_formatter(FixedFormatter(shown[::-1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low, high)


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write the figure as `stem`.svg and `stem`.png; the same figure gives the same bytes."""
    with house_style():
        svg, png = stem.with_suffix(".svg"), stem.with_suffix(".png")
        figure.savefig(svg, metadata={"Date": None, "Creator": "retbench"})
        figure.savefig(png, dpi=300, metadata={"Software": "retbench"})
    return [svg, png]
