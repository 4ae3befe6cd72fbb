"""The figures against the bytes of the state: losses of more models than stand side by side, and throughput."""

from collections.abc import Iterator, Sequence

import pandas as pd

from retbench.records.record import Record
from retbench.report.curves import draw_row
from retbench.report.drawing import Drawing
from retbench.report.evaluations import Evaluations
from retbench.report.panels import Panel, frame_points, highest
from retbench.report.points import TaskPoint, instance_row, state_bytes_of
from retbench.report.provenance import describe_conditions
from retbench.report.readable_tables import MOST_MODELS
from retbench.report.recall_figure import set_byte_axis
from retbench.report.sweeps import DATA_COLUMNS, CostSweep, describe_rounds, with_failures
from retbench.units import format_rate
from retbench.workloads.workload import Workload

_METRIC = "bits_per_byte"
_STATE_LABEL = "state or cache, bytes per sequence (log scale)"


def draw_states(scores: Evaluations) -> Iterator[Drawing]:
    """Yield bits per byte against the bytes of the state, a figure per corpus and protocol with many models."""
    for point in scores.longest_texts():
        records = [record for record in scores.measured(point) if _has_both(record)]
        if len({record.model.name for record in records}) > MOST_MODELS:
            yield _draw(scores, point, records)


def _has_both(record: Record) -> bool:
    return _METRIC in record.metrics and bool(state_bytes_of(record))


def _draw(scores: Evaluations, point: TaskPoint, records: Sequence[Record]) -> Drawing:
    data = pd.DataFrame([_data_row(record) for record in records])
    title, conditions = "Quality against the size of the state", describe_conditions(records)
    figure = draw_row(
        [Panel(frame_points(data, axis="state_bytes", curve="seed"), scores.models)],
        (title, f"bits per byte, {point.title}", conditions),
        lambda drawn: f"{drawn.value:.3f}",
        _STATE_LABEL,
        set_byte_axis,
        scale="span",
    )
    caption = (
        f"Bits per byte on {point.title} against the analytical bytes of state or key-value cache of one sequence of "
        "that context; lower is better. One point per size and seed; lines join the sizes of a seed."
    )
    return Drawing(point.stem("by_state"), (point.experiment,), title, caption, conditions, figure, data)


def _data_row(record: Record) -> dict[str, object]:
    return instance_row(record) | {
        "state_bytes": state_bytes_of(record),
        "num_params_nonembedding": record.model.num_params_nonembedding,
        "metric": _METRIC,
        "unit": "bits",
        "value": record.metrics[_METRIC].value,
    }


def draw_throughput(sweeps: Sequence[CostSweep], workload: Workload) -> list[Drawing]:
    """Draw tokens/s of one experiment against the bytes of the state, a panel per batch size.

    Nothing is drawn of models whose state is not known analytically.
    """
    metric = workload.primary.name
    sized = [(sweep, *_by_state(sweep, metric)) for sweep in sweeps]
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
            at_least=top,
        )
        for sweep, rows, failed in known
    ]
    title = f"{workload.title} against the size of the state"
    figure = draw_row(
        panels,
        (title, f"tokens/s; {describe_rounds(first.rows(metric))}", first.conditions),
        lambda point: format_rate(point.value, "").strip(),
        _STATE_LABEL,
        set_byte_axis,
        scale="log",
    )
    caption = (
        "Tokens/s of all sequences of a batch against the analytical bytes of state or key-value cache of one "
        "sequence, on logarithmic axes. One point per context length; a line joins those of a model, and a state of "
        "fixed size has them at one place. Bars are 95 % intervals."
    )
    name = first.name if len(known) == 1 else first.name.rpartition("_batch")[0]
    frames = [with_failures(rows, failed, [metric]) for _, rows, failed in known]
    data = pd.concat(frames, ignore_index=True).reindex(columns=[*DATA_COLUMNS, "batch_size", "state_bytes"])
    return [Drawing(f"{name}_by_state", (first.experiment,), title, caption, first.conditions, figure, data)]


def _by_state(sweep: CostSweep, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the points of a metric and those that failed, with the bytes of their state where these are known."""
    sizes = {
        (record.model.name, record.point.context_len): state_bytes_of(record) for record in sweep.records
    }

    def with_sizes(frame: pd.DataFrame) -> pd.DataFrame:
        keys = zip(frame["model"], frame["context_len"], strict=True)
        found = pd.Series([sizes[key] for key in keys], frame.index, dtype="float64")
        return frame.assign(state_bytes=found).dropna(subset="state_bytes")

    return with_sizes(sweep.rows(metric)), with_sizes(sweep.failed)
