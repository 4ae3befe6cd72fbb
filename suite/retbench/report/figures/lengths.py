"""The figure of a metric of cost against the context length, with the crossovers of the models."""

import textwrap
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.report.comparisons import find_primary_crossover
from retbench.report.figures import style
from retbench.report.figures.curves import draw_scales, with_length
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.labels import CORNERS, add_note, beside, shorten
from retbench.report.figures.panels import Panel, batch_panels
from retbench.report.sweeps import POINT_WORDS, CostSweep, describe_batches, name_of, stack_data, subtitle_of
from retbench.report.tables.cells import format_metric
from retbench.report.wording import crossing_ends, describe_absence, format_length, with_interval
from retbench.stats.intervals import Crossover
from retbench.workloads.workload import MetricSpec, Workload

_CROSSOVERS = (
    "A crossover is the geometric mean of those of the rounds, each interpolated between the measured lengths, "
    "linearly on logarithmic axes; the lines of the means may cross elsewhere."
)
_NOTE_WIDTH = 26
"""Characters in a line of a note in a figure."""
_MOST_CROSSINGS = 2
"""Crossovers that have room in a figure; more of them stand in its data and in the tables only."""


def draw_lengths(sweeps: Sequence[CostSweep], workload: Workload) -> Drawing:
    """Draw the primary metric, a panel per batch size; on logarithmic axes with the crossovers."""
    first, metric = sweeps[0], workload.primary
    panels, crossings = batch_panels(sweeps, metric), [_crossings(sweep) for sweep in sweeps]
    marked = [found if len(found) <= _MOST_CROSSINGS else {} for found in crossings]
    has_crossing = any(crossing.value is not None for found in marked for _, crossing in found.values())
    unit = panels[0].unit
    view = View(
        name=name_of(sweeps),
        title=workload.title,
        subtitle=subtitle_of(unit, sweeps, metric.name),
        caption=f"{workload.quantity.capitalize()}, {unit}, against the context length, {describe_batches(sweeps)}. "
        + POINT_WORDS
        + (f" {_CROSSOVERS}" if has_crossing else ""),
        records=first.records,
        models=first.models,
    )
    # Without the crossovers: they are interpolated on logarithmic axes, so the lines meet elsewhere on linear ones.
    figure, linear = draw_batches(panels, view.texts, metric)
    for axes, sweep, found in zip(figure.axes, sweeps, marked, strict=True):
        for model, (lengths, crossing) in found.items():
            label = shorten(sweep.models.labels[model])
            _mark_crossing(axes, crossing, lengths, label, with_note=len(sweeps) == 1)
    data = [
        sweep.data([metric.name], [_data_row(model, crossing) for model, (_, crossing) in found.items()])
        for sweep, found in zip(sweeps, crossings, strict=True)
    ]
    return view.drawing(figure, stack_data(sweeps, data), linear)


def draw_batches(
    panels: Sequence[Panel], texts: tuple[str, str, str], metric: MetricSpec
) -> Iterator[Figure]:
    """Yield panels of a metric against the context length on logarithmic axes, then on linear ones."""
    longest = panels[-1].ticks[-1]
    return draw_scales(
        panels,
        texts,
        lambda point: with_length(format_metric(metric.name, point.value, metric.unit), point, longest),
        style.LENGTH_LABEL,
    )


def _crossings(sweep: CostSweep) -> dict[str, tuple[list[int], Crossover]]:
    """Return the crossover of each model with the reference and the lengths used, where both have two lengths."""
    found = {model: find_primary_crossover(sweep, model) for model in sweep.models.challengers}
    return {model: crossing for model, crossing in found.items() if crossing is not None}


def _data_row(model: str, crossing: Crossover) -> tuple[object, ...]:
    """Return a crossover as a row of `CostSweep.data`."""
    length = "crossover_context_len", "tokens", crossing.value
    return model, *length, crossing.low, crossing.high, crossing.kind


def _mark_crossing(
    axes: Axes, crossing: Crossover, lengths: Sequence[int], label: str, *, with_note: bool
) -> None:
    """Mark where a model becomes faster than the reference, its interval shaded; with a note, also if it does not.

    Args:
        axes: The panel.
        crossing: The crossover.
        lengths: The lengths that it was looked for in.
        label: The model.
        with_note: Whether there is a note.
    """
    if crossing.value is None:
        words = f"{label} is {describe_absence(crossing, lengths)}"
        texts, anchors = [textwrap.fill(words, _NOTE_WIDTH)], CORNERS
    else:
        if crossing.low is not None and crossing.high is not None:
            axes.axvspan(crossing.low, crossing.high, color=style.GRID, linewidth=0, zorder=0)
        axes.axvline(crossing.value, **style.GUIDE)
        length, ends = format_length(crossing.value), crossing_ends(crossing)
        on_one_line = f"{with_interval(length, *ends)} tokens"
        on_two_lines = with_interval(f"{length} tokens", *ends).replace(" [", "\n[")
        texts = [f"{label} faster from\n{words}\n(interpolated)" for words in (on_one_line, on_two_lines)]
        anchors = (*beside(crossing.value), *CORNERS)
    if with_note:
        add_note(axes, anchors, *texts)
