"""The figure of training cost: tokens/s above the peak memory of a step, with lines through a linear memory."""

from collections.abc import Mapping
from dataclasses import replace

from matplotlib.figure import Figure

from retbench.report.comparisons import LINEAR_MARGIN, Line, fit_line
from retbench.report.figures import style
from retbench.report.figures.curves import draw_column, end_labels, with_length
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.panels import MEMORY_UNITS, RATE_UNITS, Panel, PlotPoint, sweep_panel
from retbench.report.sweeps import CostSweep
from retbench.units import format_bytes
from retbench.workloads.workload import Workload

_TALLEST = 2.5
"""Highest memory that is drawn over the highest one that is linear in the length, as a ratio."""


def draw_training(sweep: CostSweep, workload: Workload) -> Drawing:
    """Draw speed and peak memory of training."""
    lines = {
        model: line for model in sweep.models.models if (line := fit_line(sweep.points, "peak_bytes", model))
    }
    caption = (
        "Tokens/s and peak memory of a whole training step (forward, backward, AdamW) on sequences of "
        f"each length, batch {sweep.batch_size}. Points are geometric means of the rounds' medians, bars their 95 % "
        "intervals. Memory is weights, gradients, the optimizer's averages, activations and temporaries. A dotted "
        "line is the linear fit of a memory that differs from it by at most "
        f"{100 * LINEAR_MARGIN:.0f} % at every point. Memory far above these leaves the plot; its value is beside its "
        "name."
    )
    fitting = {model: line for model, line in lines.items() if line.fits}
    subtitle = sweep.subtitle("step_s") + ("; dotted: linear fit" if fitting else "")
    view = View(sweep.name, workload.title, subtitle, caption, sweep.records, sweep.models)
    rows = [
        (model, f"fitted_{name}", unit, value, None, None, "linear" if line.fits else "not linear")
        for model, line in lines.items()
        for name, unit, value in (
            ("slope_bytes_per_token", "bytes/token", line.slope),
            ("intercept_bytes", "bytes", line.intercept),
            ("largest_residual_ratio", "ratio", line.largest_residual),
        )
    ]
    data = sweep.data(["tokens_per_s", "peak_bytes"], rows)
    return view.drawing(_draw(sweep, view.texts, fitting), data)


def _draw(sweep: CostSweep, texts: tuple[str, str, str], linear: Mapping[str, Line]) -> Figure:
    """Draw tokens/s above peak memory, with the lines of the models whose memory is linear in the length."""

    def describe_speed(point: PlotPoint) -> str:
        return with_length(f"{point.value:,.0f} tokens/s", point, sweep.lengths[-1])

    def describe_memory(point: PlotPoint) -> str:
        words = with_length(format_bytes(point.value), point, sweep.lengths[-1])
        line = linear.get(point.model)
        return f"{words}\n{format_bytes(line.slope)} per token" if line else words

    speed = sweep_panel(sweep, "tokens_per_s", "{unit}", units=RATE_UNITS)
    memory = _memory_panel(sweep, linear)
    figure = draw_column(
        [speed, memory],
        [end_labels(speed, describe_speed), end_labels(memory, describe_memory)],
        texts,
        [style.LENGTH_LABEL] * 2,
    )
    for line in linear.values():
        x = [0.0, float(line.lengths[-1])]
        y = [(line.intercept + line.slope * length) / memory.size for length in x]
        figure.axes[1].plot(x, y, **style.DOTTED, zorder=2.5)
    return figure


def _memory_panel(sweep: CostSweep, linear: Mapping[str, Line]) -> Panel:
    """Return peak memory; values far above the linear ones, which would flatten those, leave the panel."""
    panel = sweep_panel(sweep, "peak_bytes", "peak memory, {unit}", units=MEMORY_UNITS)
    values = [point.value for point in panel.measured if point.model in linear]
    return replace(panel, at_most=_TALLEST * max(values)) if values else panel
