"""The time to embed a text: a workload of one's own."""

from typing import Any

from retbench.records.record import Metric
from retbench.workloads.workload import Measurement, MetricSpec, Workload, without_gradients


@without_gradients
def measure(context: Any) -> Measurement:
    """Time the embedding of the cell's context."""
    tokens = context.read_tokens(context.cell.point.context_len)
    samples = context.time_calls(lambda: context.model.embedding(tokens))
    middle = sorted(samples)[len(samples) // 2]
    return Measurement(metrics={"embed_s": Metric(unit="s", value=middle, samples=tuple(samples))})


WORKLOAD = Workload(
    name="embedding",
    title="Embedding latency",
    metrics=(MetricSpec("embed_s", "time to embed", True, has_interval=True, better="faster"),),
    quantity="time to embed the context",
    measure=measure,
    estimate=lambda cell, ceilings: 0.01,
)
