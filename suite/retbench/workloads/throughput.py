"""Tokens/s of a batch at a depth: decode steps as `decode` times them, without compiled code.

The code of a compiled step serves one batch size. Compiling it once more for every model and round takes longer than
timing the batch, so the steps run eagerly whatever the profile says; records state it. They may be replayed from CUDA
graphs. Compare their times with those of other batches of this workload, and not with compiled steps of `decode`.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from retbench.planning.cells import Cell
from retbench.records.record import Ceilings
from retbench.workloads import decode, metrics
from retbench.workloads.workload import Measurement, MetricSpec, Workload

if TYPE_CHECKING:
    from retbench.workloads.context import Context


def measure(context: "Context") -> Measurement:
    """Time at least `min_steps` eager decode steps at the cell's context length and batch size."""
    return decode.measure(replace(context, cell=_eager(context.cell)))


def _eager(cell: Cell) -> Cell:
    """Return a cell whose steps are not compiled."""
    return cell.model_copy(update={"settings": cell.settings.model_copy(update={"compile": False})})


def estimate(cell: Cell, ceilings: Ceilings) -> float:
    """Estimate the seconds of a cell in one round."""
    return decode.estimate(_eager(cell), ceilings)


WORKLOAD = Workload(
    name="throughput",
    title="Decode throughput",
    metrics=(
        metrics.TOKENS_PER_S,
        MetricSpec("tpot_s", "time per step", True, has_interval=True, better="faster"),
        *metrics.OF_DECODE_STEPS,
    ),
    quantity="decoded tokens per second over all sequences of a batch",
    measure=measure,
    estimate=estimate,
    modules=(__name__, decode.__name__),
    order=3,
    starts_from_state=True,
)
