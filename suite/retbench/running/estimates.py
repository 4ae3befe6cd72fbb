"""Estimates of a plan: time and memory of each cell, from analytical costs and measured ceilings."""

from dataclasses import dataclass, replace
from queue import SimpleQueue

from retbench.architectures import costs
from retbench.errors import RetbenchError
from retbench.measure.environment import code_revision
from retbench.planning.cells import Cell
from retbench.planning.plan import Plan
from retbench.records.record import Ceilings
from retbench.running.gates import GATE_DEPTH, gate_depth
from retbench.running.locks import refuse_estimate, timing_lock
from retbench.running.process import WorkerExit, start_worker
from retbench.running.protocol import Failed, Measured, Refused, RunInfo
from retbench.workloads.metrics import estimated_prefill_seconds, training_bytes
from retbench.workloads.workload import find_workload

WORKER_START_S = 2.0
"""Estimated time from starting a worker's process to its first cell, on a current CPU."""

FIRST_COMPILATION_S, CACHED_COMPILATION_S = 1.7, 0.9
"""Estimated time of compiling a block's decode step, and of finding its code in the cache on disk: six blocks took 9.0
to 11.5 s and 5.3 to 5.6 s on an Intel Xeon."""

GATE_PREFILLS, GATE_TOKENS = 12, 2048
"""Estimated time of the equivalence check, in prefills of so many tokens."""
DEEP_PREFILLS = 2
"""Prefills of the check at its depth, in addition where that is deeper than on a CPU, where the others were counted."""


@dataclass(frozen=True)
class CellEstimate:
    """Estimated time and memory of a cell.

    They are None for workloads that cannot be estimated, such as evaluations, and for models without analytical costs.

    Attributes:
        cell: The cell.
        seconds: Wall time in all rounds, with its share of starting workers, of compiling the steps and of the
            equivalence check. The deepest cell of a streamed model includes the streaming.
        memory_bytes: Weights, state, the activations in flight, and what training keeps for the gradients; without the
            process itself.
        error: Why the cell's model cannot run here; None where it can.
    """

    cell: Cell
    seconds: float | None
    memory_bytes: int | None
    error: str | None = None


def estimate(plan: Plan) -> list[CellEstimate]:
    """Estimate time and memory of each cell, from analytical costs and ceilings that a worker measures now.

    Raises:
        RetbenchError: another run is being timed on this machine, which measuring the ceilings would disturb.
    """
    ceilings, errors = _measure_ceilings(plan)
    found = estimate_with(plan, ceilings)
    return [replace(item, error=errors.get(item.cell.under_test.label)) for item in found]


def estimate_with(plan: Plan, ceilings: Ceilings) -> list[CellEstimate]:
    """Estimate time and memory of each cell from given ceilings.

    Raises:
        ConfigError: the estimate of a user's workload is no number from 0 on.
    """
    streamed = [
        cell for cell in plan.cells if find_workload(cell.workload).starts_from_state and not cell.model.grows
    ]
    streamed.sort(key=lambda cell: cell.point.context_len)
    deepest = {cell.under_test.label: cell for cell in streamed}  # the last of a model stays
    num_cells = len(plan.cells) / len(plan.models)
    start_s, depth = WORKER_START_S * (plan.rounds + 1), gate_depth(plan.cells)
    found = []
    for cell in plan.cells:
        workload = find_workload(cell.workload)
        if workload.estimate is None or costs.missing_reason(cell.model):
            found.append(CellEstimate(cell, None, None))
            continue
        gate_s = GATE_PREFILLS * estimated_prefill_seconds(cell, 1, GATE_TOKENS, ceilings)
        if depth > GATE_DEPTH["cpu"]:
            gate_s += DEEP_PREFILLS * estimated_prefill_seconds(cell, 1, depth, ceilings)
        sized = _sized(cell, plan.device_memory_bytes)
        seconds = (
            (start_s + gate_s) / num_cells
            + _compilation_seconds(cell, plan)
            + plan.rounds_of(cell) * workload.estimate_seconds(sized, ceilings)
        )
        if cell == deepest.get(cell.under_test.label):
            seconds += estimated_prefill_seconds(cell, 1, cell.point.context_len, ceilings)
        found.append(CellEstimate(cell, seconds, _memory_bytes(sized)))
    return found


def _compilation_seconds(cell: Cell, plan: Plan) -> float:
    """Estimate a cell's share of compiling its step in every round, which serves all its depths; 0 where it is not."""
    if not (cell.settings.compile and find_workload(cell.workload).compiles):
        return 0.0
    sharing = [
        one
        for one in plan.cells
        if (one.under_test.label, one.workload, one.point.batch_size)
        == (cell.under_test.label, cell.workload, cell.point.batch_size)
    ]
    of_block_s = FIRST_COMPILATION_S + (plan.rounds_of(cell) - 1) * CACHED_COMPILATION_S
    return cell.model.num_layers * of_block_s / len(sharing)


def _measure_ceilings(plan: Plan) -> tuple[Ceilings, dict[str, str]]:
    """Have a worker measure the device's ceilings; also return why models cannot run here, by their label."""
    of_each = list({cell.under_test.label: cell for cell in plan.cells}.values())
    errors: dict[str, str] = {}
    run, settings = RunInfo.of(plan, "estimate", code_revision()), plan.settings
    with (
        timing_lock(plan.command, settings.device, wait=refuse_estimate, threads=settings.threads),
        start_worker(plan, "ceilings", of_each, run, SimpleQueue()) as worker,
    ):
        for message in worker.messages(plan.profile.timeout_s):
            match message:
                case Measured(ceilings=ceilings):
                    return ceilings, errors
                case Refused(cells=cells, error=error):
                    errors |= {of_each[index].under_test.label: error for index in cells}
                case WorkerExit(reason=reason):
                    raise RetbenchError(f"the ceilings could not be measured: {reason}")
                case Failed():
                    raise message.error()
    raise RetbenchError("the ceilings could not be measured: the worker ended without a message.")


def _sized(cell: Cell, device_memory_bytes: int | None) -> Cell:
    """Return a cell at the batch size that is expected, where the workload finds the batch size."""
    memory_bytes = cell.settings.memory_limit_bytes or device_memory_bytes
    if not find_workload(cell.workload).finds_batch or memory_bytes is None:
        return cell
    largest = costs.largest_batch(cell.model, cell.settings.dtype, memory_bytes, cell.point.context_len)
    return cell.model_copy(update={"point": cell.point.model_copy(update={"batch_size": max(1, largest)})})


def _memory_bytes(cell: Cell) -> int:
    """Return the bytes of weights, state, and the widest activations of a block for every token in flight."""
    workload, model, dtype = find_workload(cell.workload), cell.model, cell.settings.dtype
    batch_size, context_len = cell.point.batch_size, cell.point.context_len
    if workload.computes_gradients:
        return training_bytes(cell)
    segment = min(context_len, costs.PREFILL_SEGMENT)
    streams = workload.starts_from_state and not model.grows
    tokens = batch_size * segment if workload.reads_prompts else max(batch_size, segment * streams)
    activations = costs.prefill_workspace_bytes(model, dtype, tokens, batch_size)
    state = costs.state_bytes(model, dtype, batch_size, context_len + 1)
    return costs.weight_bytes(model, dtype) + state + activations
