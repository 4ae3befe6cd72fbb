"""The figure of tuning: how the run of each learning rate of the grid ended, a panel per model and a line per size."""

import textwrap
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from retbench.records.record import Record
from retbench.report import style
from retbench.report.curves import describe_crosses
from retbench.report.evaluations import Evaluations
from retbench.report.points import (
    Lineup,
    TaskPoint,
    fact,
    group,
    instance_of,
    instance_row,
    is_final,
    learning_rate,
)
from retbench.report.provenance import describe_conditions
from retbench.report.style import Drawing
from retbench.units import format_size, format_tokens

_ACCURACY, _LOSS = "validation_acc", "validation_loss_nats"
_MOST_COLUMNS = 3
_ROW_IN, _GAP_IN, _LINE_IN = 0.72, 0.38, 0.1
"""Least height of a panel, and height of the space between two rows and of a second line of a panel's title."""
_ROWS_IN = 1.3
"""Least height of all panels."""
_RING_PT = 7.0
_TITLE_LETTERS = 18
"""Letters of a title that have room over a panel."""
_CAPTION = (
    "at the end of each run of the grid of learning rates; one seed. A ring marks the rate with the lowest validation "
    "loss, which the final runs of the model take. The grey areas are beyond the grid: next to a ring at an end of the "
    "grid, a better rate may lie there."
)


def draw_rates(scores: Evaluations, task_point: TaskPoint) -> Iterator[Drawing]:
    """Yield the accuracy, else the loss, of the runs of a grid with more than one learning rate."""
    records = [record for record in scores.at(task_point) if not is_final(record) and _has_rate(record)]
    ended = [record for record in records if record.status == "ok" and _LOSS in record.metrics]
    if not ended or len(set(map(learning_rate, records))) < 2:
        return
    is_task = all(_ACCURACY in record.metrics for record in ended)
    unit = "token" if fact(ended[0], "tokenizer") else "answer"
    quantity = "validation accuracy, %" if is_task else f"validation loss, nats per {unit}"
    where = f"{task_point.task or 'its own text'}, sequences of {format_tokens(task_point.context_len)}"
    data = _data(records, _ACCURACY if is_task else _LOSS, set(map(id, _best(ended))))
    title, conditions = "Tuning of the learning rate", describe_conditions(records)
    texts = title, f"{quantity}; {where}", conditions
    yield Drawing(
        name=task_point.stem("rates"),
        experiments=(task_point.experiment,),
        title=title,
        caption=f"{quantity[0].upper()}{quantity[1:]}, {_CAPTION}",
        conditions=conditions,
        figure=_draw(data, scores.models, scores.sizes(records), texts),
        data=data,
    )


def _has_rate(record: Record) -> bool:
    return 0 < (learning_rate(record) or 0) < inf


def _best(records: Sequence[Record]) -> Iterator[Record]:
    """Yield the run of each model instance with the lowest validation loss; a tie goes to the lower rate."""
    for grid in group(records, lambda record: (record.model.name, instance_of(record))).values():
        yield min(grid, key=lambda record: (record.metrics[_LOSS].value, learning_rate(record)))


def _data(records: Sequence[Record], metric: str, best: set[int]) -> pd.DataFrame:
    """Return a row per run; one that failed has no value."""
    rows = []
    for record in records:
        found = record.metrics.get(metric) if record.status == "ok" else None
        rows.append(
            instance_row(record)
            | {
                "learning_rate": learning_rate(record),
                "metric": metric,
                "unit": found and found.unit,
                "value": found and found.value,
                "status": record.status,
                "is_best": id(record) in best,
            }
        )
    return pd.DataFrame(rows).sort_values("learning_rate", kind="stable", ignore_index=True)


def _draw(data: pd.DataFrame, models: Lineup, sizes: Sequence[str], texts: tuple[str, str, str]) -> Figure:
    """Draw the panels row by row, all with the same axes."""
    names = [name for name in models.models if name in set(data["model"])]
    titles = ["\n".join(textwrap.wrap(models.labels[name], _TITLE_LETTERS, max_lines=2)) for name in names]
    num_rows = -(-len(names) // _MOST_COLUMNS)
    num_columns = -(-len(names) // num_rows)
    above_in = _LINE_IN * max(title.count("\n") for title in titles)
    gap_in, top_in = _GAP_IN + above_in, style.HEADER_IN + above_in
    crosses = describe_crosses(data.loc[data["status"] != "ok", "status"])
    label = "; ".join(["1000 × learning rate (log scale)", *crosses])
    rows_in = max(_ROWS_IN, num_rows * (_ROW_IN + gap_in) - gap_in)
    figure = style.new_figure(top_in + rows_in + style.BASE_IN, *texts)
    panels = style.add_panels(
        figure,
        [1] * num_columns,
        [""] * (num_rows - 1) + [label],
        right_in=0.1,
        top_in=top_in,
        gap_in=gap_in,
    )
    for axes, name, title in zip(panels, names, titles, strict=False):
        look = style.look(models.models.index(name))
        axes.set_title(title, fontsize=6.4, fontweight="bold", loc="left", pad=3, color=look.text)
        _set_axes(axes, data)
        own = data[data["model"] == name]
        for (size, _), run in own.groupby(["size", "seed"], sort=False):
            dash = _dash(len(sizes) - 1 - sizes.index(size))
            _draw_runs(axes, run, models, dash)
    for unused in panels[len(names) :]:
        unused.remove()
    if len(sizes) > 1:
        _name_sizes(figure, sizes)
    return figure


def _set_axes(axes: Axes, data: pd.DataFrame) -> None:
    """Set the axes that all panels share: a tick at each rate, and grey beyond the grid."""
    rates, values = sorted(set(data["learning_rate"])), data["value"].dropna()
    style.set_count_axis(axes, rates, [f"{1000 * rate:g}" for rate in rates])
    low, high = axes.get_xlim()
    for start, end in ((low, rates[0]), (rates[-1], high)):
        axes.axvspan(start, end, color=style.GRID, alpha=0.6, linewidth=0, zorder=0)
    if data["metric"].iloc[0] == _ACCURACY:
        style.set_value_axis(axes, 100.0)
    else:
        style.set_value_axis(axes, values.max(), values.min())


def _draw_runs(axes: Axes, runs: pd.DataFrame, models: Lineup, dash: Any) -> None:
    """Draw the runs of one model instance as a line, with a ring at the best and crosses where one failed.

    Args:
        axes: The panel.
        runs: Rows of the instance by rising rate.
        models: All models.
        dash: Dash pattern of the size.
    """
    model, size, metric = runs[["model", "size", "metric"]].iloc[0]
    look, ended = style.look(models.models.index(model)), runs.dropna(subset="value")
    rates, values = ended["learning_rate"], ended["value"] * (100 if metric == _ACCURACY else 1)
    options = {"color": look.line, "markersize": 3.2 * look.marker_scale, "markeredgewidth": 0.4}
    drawn = axes.plot(
        rates, values, look.marker, linestyle=dash, linewidth=1.0, markeredgecolor=style.PAPER, **options
    )
    ring = ended["is_best"]
    drawn += axes.plot(
        rates[ring],
        values[ring],
        "o",
        color="none",
        markeredgecolor=look.line,
        markersize=_RING_PT,
        clip_on=False,
    )
    failed = runs.loc[runs["status"] != "ok", "learning_rate"]
    top = axes.get_xaxis_transform()
    drawn += axes.plot(failed, [1.0] * len(failed), "x", color=look.line, transform=top, clip_on=False)
    style.tag(axes, model, drawn)
    for rate, value in zip(rates, values, strict=True):
        words = f"{value:.1f} %" if metric == _ACCURACY else f"{value:.3f} nats"
        style.mark(
            axes, model, (rate, value), f"{models.labels[model]} {format_size(size)}, {rate:g}: {words}"
        )


def _dash(place: int) -> Any:
    """Return the dash pattern of a size by its place from the largest, whose line is solid."""
    return (0, (4 / place, 1.2)) if place else "-"


def _name_sizes(figure: Figure, sizes: Sequence[str]) -> None:
    """Write the sizes with their lines beside the title."""
    figure.legend(
        [
            Line2D([], [], color=style.MUTED, linestyle=_dash(len(sizes) - 1 - place))
            for place in range(len(sizes))
        ],
        list(map(format_size, sizes)),
        ncols=len(sizes),
        loc="upper right",
        bbox_to_anchor=(1 - 0.1 / style.WIDTH_IN, 1 - 0.07 / figure.get_figheight()),
        frameon=False,
        prop={"size": 6.2},
        borderpad=0.0,
        borderaxespad=0.0,
        handlelength=2.2,
        handletextpad=0.4,
        columnspacing=0.9,
    )
