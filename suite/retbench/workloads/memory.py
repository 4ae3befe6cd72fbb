"""Memory of inference at a depth: weights, state and workspace of a decode step, counted and by closed form.

Nothing is timed here. The state holds zeros: what is in it does not change how many bytes a step needs.
"""

import torch
from torch import nn

from retbench.architectures import costs
from retbench.data import text
from retbench.measure.memory import MemoryUse, measure_memory
from retbench.records.record import Metric
from retbench.workloads.context import Context, Measurement, Notes
from retbench.workloads.metrics import counted


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, without the few hundred of buffers (decay, rotary frequencies)."""
    return sum(parameter.nbytes for parameter in model.parameters())


@torch.inference_mode()
def measure(context: Context) -> Measurement:
    """Bytes held and bytes needed by a decode step at the cell's context length."""
    cell, model = context.cell, context.model
    batch, depth = cell.point.batch_size, cell.point.context_len
    capacity = depth + 1
    state = model.init_state(batch, capacity)
    rows = text.read_rows(batch, 2, start=depth - 1).to(context.device)
    lead, token = rows[:, :1].clone(), rows[:, 1:].clone()
    state.position = depth - 1
    context.forget_what_ran()
    model(lead, state)  # what is allocated once and kept is allocated here
    use = measure_memory(lambda: model(token, state), context.device)
    weights = weight_bytes(model)
    notes: Notes = {
        "cuda_graph": False,
        "compile": False,
        "state_source": "zeros",
        "process_peak_since": use.process_peak_since,
    }
    if state.capacity is not None:
        notes["kv_capacity"] = state.capacity
    on_device, absent = device_peaks(use)
    return Measurement(
        metrics={
            **on_device,
            "weight_bytes": counted(weights),
            "state_bytes": counted(state.num_bytes),
            "workspace_bytes": counted(use.workspace_bytes),
            "peak_bytes": counted(weights + state.num_bytes + use.workspace_bytes),
            "process_peak_bytes": counted(use.process_peak_bytes),
            "expected_weight_bytes": counted(costs.weight_bytes(cell.model, cell.settings.dtype)),
            "expected_state_bytes": counted(
                costs.state_bytes(cell.model, cell.settings.dtype, batch, capacity)
            ),
        },
        absent=absent,
        backend={**model.executed_backends(), **notes},
    )


def device_peaks(use: MemoryUse) -> tuple[dict[str, Metric], dict[str, str]]:
    """Peaks of the GPU's allocator during the call; absent on a CPU."""
    peaks = {"device_peak_bytes": use.device_peak_bytes, "reserved_peak_bytes": use.reserved_peak_bytes}
    found = {name: counted(value) for name, value in peaks.items() if value is not None}
    return found, dict.fromkeys(peaks.keys() - found.keys(), "the device is a CPU")
