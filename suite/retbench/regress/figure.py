"""Figure of a comparison: every ratio with its interval and the margin within which it counts as the same."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from retbench.regress.report import CheckReport, DecidedItem
from retbench.report.figures import style
from retbench.stats.intervals import Interval

ROW_IN = 0.145
_COLOURS = {"regressed": "#D55E00", "improved": "#009E73", "same": style.MUTED, "inconclusive": "#E69F00"}
"""Okabe and Ito's colours, as in every figure."""
_LABEL_IN = 1.5


def draw_ratios(report: CheckReport) -> Figure:
    """Draw second over first for every item with rounds, in the order of the report."""
    rows = [(item, item.change) for item in report.items if item.change]
    with style.house_style():
        footer = f"{report.first} | {report.second} | {report.method}"
        figure, (axes,) = style.new_panels(
            ("Second side over first", report.headline, footer),
            [1.0],
            ["ratio with its 95 % interval; grey: the margin"],
            row_in=ROW_IN * max(1, len(rows)) + 0.07,
            right_in=0.2,
            left_in=_LABEL_IN,
        )
        for number, (item, change) in enumerate(rows):
            _draw_row(axes, number, item, change)
        axes.axvline(1.0, color=style.INK, linewidth=0.6)
        axes.set_yticks(range(len(rows)), [item.name for item, _ in rows], fontsize=4.6)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="x", labelsize=6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=True, axis="x")
    return figure


def _draw_row(axes: Axes, number: int, item: DecidedItem, change: Interval) -> None:
    """Draw the margin, the interval and the value of one ratio."""
    colour, margin = _COLOURS[item.verdict], item.margin
    axes.barh(number, margin - 1 / margin, left=1 / margin, height=1.0, color=style.GRID, linewidth=0)
    if change.low is not None and change.high is not None and change.high < 10:
        axes.plot([change.low, change.high], [number, number], color=colour, linewidth=1.1)
    face = colour if item.verdict in {"regressed", "improved"} else style.PAPER
    axes.plot([change.value], [number], marker="o", markersize=3, color=colour, markerfacecolor=face)
