"""The figure of a comparison: every ratio with its interval, beside the margin that counts as the same."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from retbench.regress.rendering_report import Report
from retbench.report import style
from retbench.stats.sequential import Decision, Verdict

ROW_IN = 0.145
_COLOURS: dict[Verdict, str] = {
    "regressed": "#D55E00",
    "improved": "#009E73",
    "same": style.MUTED,
    "inconclusive": "#E69F00",
}
"""Okabe and Ito's, as in every figure."""
_LABEL_IN = 1.5


def draw_ratios(report: Report) -> Figure:
    """Second over first of every item, in the order of the report; an interval that was not found is left out."""
    rows = [(item, decision) for item, decision in report.decisions.items() if decision.evidence]
    height = style.HEADER_IN + style.FOOTER_IN + 0.4 + ROW_IN * max(1, len(rows))
    with style.house_style():
        figure = style.new_figure(
            height,
            "Second side over first",
            report.headline,
            f"{report.first} | {report.second} | {report.method}",
        )
        (axes,) = style.add_panels(
            figure,
            [1.0],
            right_in=0.2,
            label="ratio with its 95 % interval; grey: the margin",
            left_in=_LABEL_IN,
        )
        for number, (_, decision) in enumerate(rows):
            _draw_row(axes, number, decision)
        axes.axvline(1.0, color=style.INK, linewidth=0.6)
        axes.set_yticks(range(len(rows)), [str(item) for item, _ in rows], fontsize=4.6)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="x", labelsize=6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=True, axis="x")
    return figure


def _draw_row(axes: Axes, number: int, decision: Decision) -> None:
    """One ratio: its margin, its interval, its value."""
    assert decision.evidence is not None
    interval, colour = decision.evidence.interval(), _COLOURS[decision.verdict]
    margin = math.exp(decision.margin)
    axes.barh(number, margin - 1 / margin, left=1 / margin, height=1.0, color=style.GRID, linewidth=0)
    if interval.low is not None and interval.high is not None and interval.high < 10:
        axes.plot([interval.low, interval.high], [number, number], color=colour, linewidth=1.1)
    filled = decision.verdict in {"regressed", "improved"}
    face = colour if filled else style.PAPER
    axes.plot([interval.value], [number], marker="o", markersize=3, color=colour, markerfacecolor=face)
