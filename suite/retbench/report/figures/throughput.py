"""The figures of throughput: tokens/s against the batch size, and against the bytes of the state."""

from collections.abc import Sequence

import pandas as pd

from retbench.report.figures import style
from retbench.report.figures.curves import draw_row, draw_scales
from retbench.report.figures.drawing import Drawing, View
from retbench.report.figures.panels import Panel, PlotPoint, frame_points, highest
from retbench.report.points import state_bytes_of
from retbench.report.sweeps import (
    DATA_COLUMNS,
    POINT_WORDS,
    CostSweep,
    describe_rounds,
    name_of,
    stack_data,
    with_failures,
)
from retbench.units import format_batch, format_rate, format_tokens
from retbench.workloads.workload import Workload

_METRIC = "tokens_per_s"
_UNITS = ((1.0, "tokens/s"),)
_BATCH = "batch {}"


def draw_throughput(sweeps: Sequence[CostSweep]) -> Drawing:
    """Draw tokens/s against the batch size, of one experiment, a panel per context length."""
    first, axis = sweeps[0], "batch_size"
    rows = pd.concat([sweep.rows(_METRIC) for sweep in sweeps], ignore_index=True)
    failed = pd.concat([sweep.failed for sweep in sweeps], ignore_index=True)
    lengths = sorted({length for sweep in sweeps for length in sweep.lengths})
    batches, top = tuple(float(sweep.batch_size) for sweep in sweeps), highest(frame_points(rows, failed))
    panels = [
        Panel(
            frame_points(rows[rows["context_len"] == length], failed[failed["context_len"] == length], axis),
            first.models,
            format_tokens(length),
            batches,
            units=_UNITS,
            at_least=top,
            where=_BATCH,
        )
        for length in lengths
    ]
    view = View(
        name=f"{first.stem}_throughput",
        title=f"{first.workload.capitalize()} throughput",
        subtitle=_subtitle(rows),
        caption=f"Tokens/s of all sequences of a batch against the batch size, at each context length. {POINT_WORDS}",
        records=first.records,
        models=first.models,
    )
    figure, linear = draw_scales(
        panels,
        view.texts,
        lambda point: _describe_rate(point) + _batch_of(point, batches[-1]),
        "batch size",
        "; one panel per context length",
        format_batch,
    )
    return view.drawing(figure, stack_data(sweeps, [sweep.data([_METRIC]) for sweep in sweeps]), linear)


def draw_throughput_by_state(sweeps: Sequence[CostSweep], workload: Workload) -> list[Drawing]:
    """Draw tokens/s of one experiment against the bytes of the state, a panel per batch size.

    Nothing is drawn of models whose state is not known analytically.
    """
    sized = [
        (sweep, _with_states(sweep.rows(_METRIC), sweep), _with_states(sweep.failed, sweep))
        for sweep in sweeps
    ]
    known = [(sweep, rows, failed) for sweep, rows, failed in sized if len(rows) or len(failed)]
    if not known:
        return []
    first = known[0][0]
    top = max(highest(frame_points(rows)) for _, rows, _ in known)
    panels = [
        Panel(
            frame_points(rows, failed, axis="state_bytes"),
            sweep.models,
            f"batch {sweep.batch_size}",
            units=_UNITS,
            at_least=top,
        )
        for sweep, rows, failed in known
    ]
    view = View(
        name=f"{name_of([sweep for sweep, *_ in known])}_by_state",
        title=f"{workload.title} against the size of the state",
        subtitle=_subtitle(pd.concat([rows for _, rows, _ in known])),
        caption="Tokens/s of all sequences of a batch against the analytical bytes of state or key-value cache of one "
        "sequence, on logarithmic axes. One point per context length; a line joins those of a model, and a state of "
        "fixed size has them at one place. Bars are 95 % intervals.",
        records=first.records,
        models=first.models,
    )
    figure = draw_row(
        panels, view.texts, _describe_rate, style.STATE_LABEL, style.set_bytes_axis, scale="log"
    )
    frames = [with_failures(rows, failed, [_METRIC]) for _, rows, failed in known]
    data = pd.concat(frames, ignore_index=True).reindex(columns=[*DATA_COLUMNS, "batch_size", "state_bytes"])
    return [view.drawing(figure, data)]


def _subtitle(rows: pd.DataFrame) -> str:
    """Return the unit, and the meaning of the error bars; the panels name the batch size."""
    return f"tokens/s; {describe_rounds(rows)}"


def _describe_rate(point: PlotPoint) -> str:
    return format_rate(point.value, "").strip()


def _batch_of(point: PlotPoint, largest: float) -> str:
    """Return the batch size of the last point of a curve if larger ones exist: ', batch 1024'."""
    return "" if point.x >= largest else f", {_BATCH.format(format_batch(point.x))}"


def _with_states(rows: pd.DataFrame, sweep: CostSweep) -> pd.DataFrame:
    """Return the points of a sweep with the bytes of their state, where these are known."""
    sizes = {(r.model.name, r.point.context_len): state_bytes_of(r) for r in sweep.records}
    keys = zip(rows["model"], rows["context_len"], strict=True)
    found = pd.Series([sizes[key] for key in keys], rows.index, dtype="float64")
    return rows.assign(state_bytes=found).dropna(subset="state_bytes")
