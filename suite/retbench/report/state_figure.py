"""The figure of losses against the bytes of the state, of more models than stand side by side in a table."""

from collections.abc import Iterator, Sequence

import pandas as pd

from retbench.records.record import Record
from retbench.report.curves import Panel, draw_row, frame_points
from retbench.report.evaluations import Evaluations
from retbench.report.points import TaskPoint, instance_row, state_bytes_of
from retbench.report.provenance import describe_conditions
from retbench.report.readable_tables import MOST_MODELS
from retbench.report.recall_figure import set_byte_axis
from retbench.report.style import Drawing

_METRIC = "bits_per_byte"


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
        "state or cache, bytes per sequence (log scale)",
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
