"""The figure of training: speed and memory against the length of the sequences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.report import style
from retbench.report.comparisons import Line
from retbench.report.labels import Label, label_ends, label_width_in
from retbench.report.lines import draw_lines, highest, margin_labels, mark_failures
from retbench.report.sweeps import CostSweep
from retbench.units import GIB, MIB, format_bytes

HEIGHT_IN = 4.4
_TALLEST = 2.0
"""How far above the highest memory that is linear in the length any other is drawn."""


def draw_training(scene: CostSweep, title: str, lines: Mapping[str, Line]) -> Figure:
    """Tokens a second above peak memory, every model's line in each.

    Args:
        scene: What is drawn.
        title: The heading.
        lines: Through the peak memory of each model that has one.
    """
    rates, peaks = scene.rows("tokens_per_s"), scene.rows("peak_bytes")
    linear = {model: line for model, line in lines.items() if line.fits}
    slopes = {model: f"\n{format_bytes(line.slope)} a token" for model, line in linear.items()}
    speeds = margin_labels(rates, scene.models, scene.lengths[-1], lambda rate: f"{rate:,.0f} tokens/s")
    sizes = margin_labels(peaks, scene.models, scene.lengths[-1], format_bytes, slopes)
    subtitle = scene.subtitle("step_s") + ("; dotted: linear fit" if linear else "")
    figure = style.new_figure(HEIGHT_IN, title, subtitle, scene.conditions)
    right_in = label_width_in([*scene.models.labels.values(), *(label.text for label in (*speeds, *sizes))])
    upper, lower = style.add_rows(figure, ["", "context length, tokens"], right_in=right_in)
    top = highest(rates)
    size, unit = (1e3, "thousand tokens/s") if top >= 1e3 else (1.0, "tokens/s")
    style.set_value_axis(upper, top / size)
    _fill_row(upper, scene, rates, speeds, (size, unit))
    top = highest(peaks)
    if linear:  # what is far above these would flatten them, and leaves the plot
        top = min(top, _TALLEST * float(peaks[peaks["model"].isin(linear)]["value"].max()))
    size, unit = (GIB, "GiB") if top >= GIB else (MIB, "MiB")
    style.set_value_axis(lower, top / size)
    _fill_row(lower, scene, peaks, sizes, (size, f"peak memory, {unit}"))
    _draw_fits(lower, linear.values(), size)
    return figure


def _fill_row(
    axes: Axes, scene: CostSweep, rows: pd.DataFrame, labels: Sequence[Label], unit: tuple[float, str]
) -> None:
    """Lines and failures of one row; labels stand to the right of it, each at the height of its line's end."""
    size, words = unit
    style.set_linear_length_axis(axes, scene.lengths)
    axes.yaxis.set_visible(not rows.empty)
    axes.set_ylabel(words, fontsize=6.5, color=style.MUTED, labelpad=3)
    draw_lines(axes, rows, scene.models, size)
    mark_failures(axes, scene.failed, scene.models, scene.lengths[0])
    edge, top = axes.get_xlim()[1], axes.get_ylim()[1]
    ordered = sorted(labels, key=lambda label: label.y)
    label_ends(axes, [replace(label, x=edge, y=min(top, label.y / size)) for label in ordered])


def _draw_fits(axes: Axes, lines: Iterable[Line], size: float) -> None:
    """A thin dotted line, from no token on, through each memory that is linear in the length."""
    for line in lines:
        x = [0.0, float(line.lengths[-1])]
        y = [(line.intercept + line.slope * length) / size for length in x]
        axes.plot(x, y, color=style.INK, linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=2.5)
