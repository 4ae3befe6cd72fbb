"""The cost of inference as the RetNet paper's Figure 6 shows it: memory, throughput and latency, a panel each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.records.record import Record
from retbench.report import style
from retbench.report.labels import Label, label_ends, label_width_in, spread
from retbench.report.lines import (
    describe_rate,
    draw_lines,
    end_labels,
    highest,
    margin_labels,
    mark_failures,
    time_unit,
)
from retbench.report.overlays import PaperPoint
from retbench.report.points import Lineup
from retbench.units import GB, format_printed, format_tokens

_ROW_IN, _GAP_IN = 1.2, 0.58
_MB = 1e6
_CROSSES_PT, _SMALL_PT = 6.0, 7.0
"""Heights of a row of crosses, and of a line of small words."""
WEIGHTS = "weight_bytes"


@dataclass(frozen=True)
class Panel:
    """One panel of the figure.

    Attributes:
        letter: Of the paper's panel.
        name: What it shows.
        metric: Of the lines.
        axis: Along the x axis: `context_len`, or `batch_size` with a line a length.
        models: All models.
        rows: Points to draw, of `points.summarise`; those of the weights too where it is of memory.
        failed: Points that have no value.
        paper: The paper's own values.
        records: What the rows are made of.
    """

    letter: str
    name: str
    metric: str
    axis: str
    models: Lineup
    rows: pd.DataFrame
    failed: pd.DataFrame
    paper: tuple[PaperPoint, ...]
    records: tuple[Record, ...]

    @property
    def lines(self) -> list[tuple[int | None, pd.DataFrame]]:
        """The points that make lines, one a model: of all lengths together, or of each where it has its own."""
        rows = self.rows[self.rows["metric"] == self.metric]
        if self.axis == "context_len":
            return [(None, rows)]
        return [(int(str(length)), mine) for length, mine in rows.groupby("context_len")]

    @property
    def places(self) -> list[int]:
        """Every place along the x axis, measured or failed, in order."""
        return sorted({int(place) for frame in (self.rows, self.failed) for place in frame[self.axis]})

    @property
    def markers(self) -> dict[str, str]:
        """The marker of the first model of each architecture."""
        architectures = {record.model.name: record.model.architecture for record in self.records}
        names = [name for name in self.models.models if name in architectures]
        return {
            architectures[name]: style.look(self.models.models.index(name)).marker for name in reversed(names)
        }

    @property
    def scale(self) -> tuple[float, str, float]:
        """The unit of the y axis: its size in base units and its name; then the highest value in base units."""
        top = max([highest(self.rows), *(point.number.value for point in self.paper)])
        match self.metric:
            case "peak_bytes":
                return (GB, "GB", top) if top >= GB else (_MB, "MB", top)
            case "tpot_s":
                return (*time_unit(top), top)
            case _:
                return 1.0, "tokens/s", top


def draw_inference(panels: Sequence[Panel], texts: tuple[str, str, str]) -> Figure:
    """The panels one above the other.

    Args:
        panels: From the top down.
        texts: Heading, subtitle and conditions.
    """
    crosses_in = max(panel.failed["model"].nunique() for panel in panels) * _CROSSES_PT / style.POINTS_PER_IN
    top_in, gap_in = style.HEADER_IN + crosses_in, _GAP_IN + crosses_in
    height_in = top_in + len(panels) * (_ROW_IN + gap_in) - gap_in + 0.33 + style.FOOTER_IN
    figure = style.new_figure(height_in, *texts)
    words = [label.text for panel in panels for label in [*_labels(panel), *_paper_labels(panel)]]
    axis_labels = ["context length, tokens" if p.axis == "context_len" else "batch size" for p in panels]
    rows = style.add_rows(figure, axis_labels, right_in=label_width_in(words), gap_in=gap_in, top_in=top_in)
    for axes, panel in zip(rows, panels, strict=True):
        _fill(axes, panel)
    return figure


def _fill(axes: Axes, panel: Panel) -> None:
    """Everything in one panel."""
    size, unit, top = panel.scale
    style.set_linear_length_axis(axes, panel.places)
    style.set_value_axis(axes, top / size)
    axes.yaxis.set_visible(not panel.rows.empty)
    for _, rows in panel.lines:
        draw_lines(axes, rows, panel.models, size, panel.axis)
    _draw_weights(axes, panel.rows[panel.rows["metric"] == WEIGHTS], size)
    _draw_paper(axes, panel)
    mark_failures(axes, panel.failed, panel.models, panel.places[0], panel.axis)
    label_ends(axes, [*_labels(panel), *_paper_labels(panel)])
    held = f", batch {panel.records[0].point.batch_size}" if panel.axis == "context_len" else ""
    axes.set_title(
        f"({panel.letter}) {panel.name}, {unit}{held}",
        fontsize=6.8,
        fontweight="bold",
        loc="left",
        pad=4 + _CROSSES_PT * panel.failed["model"].nunique(),
    )


def _labels(panel: Panel) -> list[Label]:
    """The names of the lines at the right edge of the axes, with their last value or their length."""
    size, last = panel.scale[0], panel.places[-1]
    labels = []
    for length, rows in panel.lines:
        if length is None:
            labels += margin_labels(rows, panel.models, last, lambda value: _describe(panel, value))
            continue
        found = end_labels(rows, panel.models, 1.0, lambda _: "", panel.axis)
        labels += [replace(label, text=f"{label.text.strip()} {format_tokens(length)}") for label in found]
    return [replace(label, x=style.LINEAR_EDGE * last, y=label.y / size) for label in labels]


def _describe(panel: Panel, value: float) -> str:
    """A value with three digits in the unit of its panel, which a rate does without."""
    size, unit, _ = panel.scale
    return describe_rate(value) if size == 1 else format_printed(float(f"{value / size:.3g}"), unit)


def _paper_labels(panel: Panel) -> list[Label]:
    """The last of the paper's values by context length, of each architecture, at the right edge of the axes."""
    if panel.axis != "context_len":
        return []
    last = {point.architecture: point.number.value for point in panel.paper}
    return [
        Label(
            style.LINEAR_EDGE * panel.places[-1],
            value / panel.scale[0],
            f"{style.HOLLOW[panel.markers[architecture]]} paper {_describe(panel, value)}",
            style.MUTED,
            is_bold=False,
        )
        for architecture, value in last.items()
    ]


def _draw_weights(axes: Axes, rows: pd.DataFrame, size: float) -> None:
    """A thin dotted line at the weights of each model, and what it is."""
    for _, mine in rows.groupby("model"):
        height = float(mine["value"].iloc[0]) / size
        axes.axhline(height, color=style.INK, linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=1.5)
    if not rows.empty:
        axes.annotate(
            "weights",
            xy=(0.02, rows["value"].min() / size),
            xycoords=("axes fraction", "data"),
            xytext=(0, -2),
            textcoords="offset points",
            fontsize=6.2,
            color=style.MUTED,
            va="top",
        )


def _draw_paper(axes: Axes, panel: Panel) -> None:
    """The paper's values: hollow, grey, in the shape of the model's own; with their length where lines have one."""
    for architecture in dict.fromkeys(point.architecture for point in panel.paper):
        mine = [point for point in panel.paper if point.architecture == architecture]
        axes.plot(
            [point.context_len if panel.axis == "context_len" else point.batch_size for point in mine],
            [point.number.value / panel.scale[0] for point in mine],
            panel.markers[architecture],
            markersize=5.2,
            markerfacecolor="none",
            markeredgecolor=style.MUTED,
            markeredgewidth=0.8,
            zorder=3,
        )
        if panel.axis == "batch_size" and len({point.context_len for point in mine}) > 1:
            _name_lengths(axes, mine, panel.scale[0])


def _name_lengths(axes: Axes, points: Sequence[PaperPoint], size: float) -> None:
    """The length of the paper's values at the largest batch, left of them and apart from each other."""
    last = max(point.batch_size for point in points)
    heights: dict[int, list[float]] = {}
    for point in points:
        if point.batch_size == last:
            heights.setdefault(point.context_len, []).append(point.number.value / size)
    middles = [sum(values) / len(values) for values in heights.values()]
    pt_per_unit = axes.bbox.height / axes.figure.dpi * style.POINTS_PER_IN / axes.get_ylim()[1]
    wanted = [middle * pt_per_unit for middle in middles]
    places = spread(wanted, [_SMALL_PT] * len(wanted))
    for length, middle, want, place in zip(heights, middles, wanted, places, strict=True):
        axes.annotate(
            format_tokens(length),
            xy=(last, middle),
            xytext=(-5, place - want),
            textcoords="offset points",
            fontsize=5.6,
            color=style.MUTED,
            ha="right",
            va="center",
        )
