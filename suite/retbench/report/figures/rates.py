"""The figure of tuning: how the run of each learning rate of the grid ended, a panel per model and a line per size."""

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.records.record import Record
from retbench.report.evaluations import Evaluations
from retbench.report.figures import style
from retbench.report.figures.curves import describe_crosses
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.model_panels import add_model_panels, draw_model_line
from retbench.report.figures.panels import PERCENT
from retbench.report.lineup import Lineup
from retbench.report.points import (
    TaskPoint,
    group,
    instance_of,
    instance_row,
    is_final,
    learning_rate,
    loss_unit,
)
from retbench.units import format_tokens

_ACCURACY, _LOSS = "validation_acc", "validation_loss_nats"
_RATES = (1e-12, 1e3)
"""Rates of a training lie between these; a damaged record may hold any number."""
RING_PT = 7.0
"""Size of the ring around the best rate."""
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
    quantity = "validation accuracy, %" if is_task else f"validation loss, nats per {loss_unit(ended[0])}"
    where = f"{task_point.corpus}, sequences of {format_tokens(task_point.context_len)}"
    view = View(
        name=task_point.stem("rates"),
        title="Tuning of the learning rate",
        subtitle=f"{quantity}; {where}",
        caption=f"{quantity[0].upper()}{quantity[1:]}, {_CAPTION}",
        records=records,
    )
    data = _data(records, _ACCURACY if is_task else _LOSS, set(map(id, _best(ended))))
    yield view.drawing(_draw(data, scores.models, scores.sizes(records), view.texts), data)


def _has_rate(record: Record) -> bool:
    low, high = _RATES
    return low < (learning_rate(record) or 0) < high


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
    """Draw the runs of each model, with a ring at the best and crosses where one failed."""
    crosses = describe_crosses(data.loc[data["status"] != "ok", "status"])
    label = "; ".join(["1000 × learning rate (log scale)", *crosses])
    figure, lines = add_model_panels(data, models, sizes, texts, label)
    is_task = data["metric"].iloc[0] == _ACCURACY
    size, unit = PERCENT[0] if is_task else (1.0, "nats")
    top, low = (1.0 / size, None) if is_task else (data["value"].max(), data["value"].min())
    for axes in figure.axes:
        _set_rate_axis(axes, sorted(set(data["learning_rate"])))
        style.set_value_axis(axes, top, low)
    for line in lines:
        best = line.rows[line.rows["is_best"]]
        failed = line.rows.loc[line.rows["status"] != "ok", "learning_rate"]
        edge, colour = line.axes.get_xaxis_transform(), line.look.line
        rings = line.axes.plot(
            best["learning_rate"],
            best["value"] / size,
            "o",
            color="none",
            markeredgecolor=colour,
            markersize=RING_PT,
            clip_on=False,
        )
        crossed = line.axes.plot(
            failed, [1.0] * len(failed), "x", color=colour, transform=edge, clip_on=False
        )
        draw_model_line(line, "learning_rate", (size, unit), [*rings, *crossed])
    return figure


def _set_rate_axis(axes: Axes, rates: Sequence[float]) -> None:
    """Make a logarithmic axis with a tick at each of these rising rates, grey beyond the first and the last."""
    style.set_count_axis(axes, rates, lambda rate: f"{1000 * rate:g}")
    low, high = axes.get_xlim()
    for start, end in ((low, rates[0]), (rates[-1], high)):
        axes.axvspan(start, end, color=style.GRID, alpha=0.6, linewidth=0, zorder=0)
