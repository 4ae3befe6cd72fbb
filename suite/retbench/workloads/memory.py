"""Memory of inference at a depth: weights, state and workspace of a decode step, measured and analytical.

Nothing is timed here. The state holds zeros: its contents do not change how many bytes a step needs.
"""

from typing import TYPE_CHECKING

from retbench.architectures import costs
from retbench.planning.cells import Cell
from retbench.records.record import Ceilings
from retbench.workloads.metrics import PROCESS_PEAK, WEIGHTS, WORKSPACE, counted, estimated_step_seconds
from retbench.workloads.workload import Measurement, MetricSpec, Notes, Workload, without_gradients

if TYPE_CHECKING:
    from retbench.workloads.context import Context


@without_gradients
def measure(context: "Context") -> Measurement:
    """Measure the bytes that a decode step at the cell's context length holds and needs."""
    cell, model = context.cell, context.model
    batch, depth = cell.point.batch_size, cell.point.context_len
    capacity = depth + 1
    state = model.init_state(batch, capacity)
    rows = context.read_tokens(2, start=depth - 1)
    lead, token = rows[:, :1].clone(), rows[:, 1:].clone()
    state.start_at(depth - 1)
    context.reset_backend_log()
    model(lead, state)  # what is allocated once and kept is allocated here
    before = state.num_bytes
    use, peaks = context.measure_memory(lambda: model(token, state))
    # A concatenated cache grows by the token's entries, which are part of the state.
    workspace = use.workspace_bytes - (state.num_bytes - before)
    weights, dtype = context.weight_bytes, cell.settings.dtype
    held = {
        "weight_bytes": weights,
        "state_bytes": state.num_bytes,
        "workspace_bytes": workspace,
        "peak_bytes": weights + state.num_bytes + workspace,
        "process_peak_bytes": use.process_peak_bytes,
    }
    reason, absent = costs.missing_reason(cell.model), dict(peaks.absent)
    if reason is None:
        held["expected_weight_bytes"] = costs.weight_bytes(cell.model, dtype)
        held["expected_state_bytes"] = costs.state_bytes(cell.model, dtype, batch, capacity)
    else:
        absent |= dict.fromkeys(("expected_weight_bytes", "expected_state_bytes"), reason)
    notes: Notes = {
        "cuda_graph": False,
        "compile": False,
        "state_source": "zeros",
        "process_peak_since": use.process_peak_since,
    }
    return Measurement(
        metrics={**peaks.metrics, **{name: counted(value) for name, value in held.items()}},
        absent=absent,
        backend=context.backend_with(notes, state),
    )


def estimate(cell: Cell, ceilings: Ceilings) -> float:
    """Estimate the seconds of a cell in one round."""
    return 2 * estimated_step_seconds(cell, ceilings)


WORKLOAD = Workload(
    name="memory",
    title="Memory of inference",
    metrics=(
        MetricSpec("peak_bytes", "weights + state + workspace", True, better="less memory"),
        WEIGHTS,
        MetricSpec("state_bytes", "state or KV cache", True),
        WORKSPACE,
        MetricSpec("expected_weight_bytes", "weights, analytical"),
        MetricSpec("expected_state_bytes", "state, analytical"),
        PROCESS_PEAK,
    ),
    quantity="memory of weights, state and workspace",
    measure=measure,
    estimate=estimate,
    order=3,
)
