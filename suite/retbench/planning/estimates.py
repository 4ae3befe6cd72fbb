"""What a plan will roughly take: time and memory of each cell, from closed forms and measured ceilings."""

import os
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from retbench.architectures import costs
from retbench.architectures.configs import RetNetConfig
from retbench.config.experiment import DTYPE_BYTES
from retbench.errors import RetbenchError
from retbench.measure.environment import code_revision, worker_environment
from retbench.measure.power import UPDATE_S, WINDOW_S
from retbench.planning.cells import Cell, Settings
from retbench.planning.plan import Plan
from retbench.records.record import Ceilings
from retbench.run.locks import timing_lock
from retbench.run.process import Inbox, Worker, WorkerExit
from retbench.run.protocol import Failed, Job, Measured, RunInfo
from retbench.workloads import EVALUATES, FINDS_BATCH, STREAMED
from retbench.workloads.metrics import prefill_flops, training_flops
from retbench.workloads.repetition import MIN_CALLS, more_calls
from retbench.workloads.training_memory import estimated_bytes

WORKER_START_S = 2.0
"""Estimated: from starting a worker's process to its first cell, on a CPU of today."""

GATE_PREFILLS, GATE_TOKENS = 12, 2048
"""Estimated: what the gate takes, in prefills of so many tokens."""

EFFICIENCY = 0.5
"""Estimated: the share of the roofline that a step or a prefill reaches."""

SEARCH_TRIALS = 8
"""Estimated: what a search for the largest batch takes, in trials of that batch."""

FIRST_WRITE = 15
"""Estimated: how many times as long as reading memory it takes to write to it for the first time, on a CPU."""


@dataclass(frozen=True)
class Estimate:
    """What a cell will roughly take; of one that evaluates a model, whose tokens are not known yet, nothing is said.

    Attributes:
        cell: The cell.
        seconds: Wall time in all rounds, with its share of starting workers and of the gate; one deepest cell of a
            streamed model has the streaming. None where it is not estimated.
        memory_bytes: Weights, state, the activations of what is in flight, and what training keeps for the gradients;
            not the process itself. None where it is not estimated.
    """

    cell: Cell
    seconds: float | None
    memory_bytes: int | None


def estimate(plan: Plan) -> list[Estimate]:
    """Time and memory of each cell, from closed forms and ceilings that a worker measures now.

    Raises:
        RetbenchError: another run is being timed on this machine, which measuring the ceilings would disturb.
    """
    ceilings = _ask_ceilings(plan)
    streamed = [
        cell for cell in plan.cells if cell.workload in STREAMED and isinstance(cell.model, RetNetConfig)
    ]
    streamed.sort(key=lambda cell: cell.point.context_len)
    deepest = {cell.subject.label: cell for cell in streamed}  # the last of a subject stays
    num_cells = len(plan.cells) / len(plan.subjects)
    start_s = WORKER_START_S * (plan.rounds + 1)
    found = []
    for cell in plan.cells:
        if cell.workload in EVALUATES:
            found.append(Estimate(cell, None, None))
            continue
        gate_s = GATE_PREFILLS * _prefill_seconds(cell, 1, GATE_TOKENS, ceilings)
        sized = _sized(cell, plan.device_memory_bytes)
        seconds = (start_s + gate_s) / num_cells + plan.rounds_of(cell) * _cell_seconds(sized, ceilings)
        if cell == deepest.get(cell.subject.label):
            seconds += _prefill_seconds(cell, 1, cell.point.context_len, ceilings)
        found.append(Estimate(cell, seconds, _memory_bytes(sized)))
    return found


def _ask_ceilings(plan: Plan) -> Ceilings:
    """The device's ceilings, measured as a run would measure them."""

    def refuse(holder: str) -> None:
        raise RetbenchError(
            f"an estimate measures the machine, and that would disturb the run of {holder}. Try again when it is done."
        )

    run = RunInfo(
        run_id="estimate",
        experiment=plan.experiment.name,
        profile=plan.profile_name,
        pair_ids={},
        command=plan.command,
        code_revision=code_revision(),
    )
    nowhere = Path(os.devnull)
    job = Job(
        task="ceilings",
        run=run,
        cells=plan.cells[:1],
        records_path=nowhere,
        states_dir=nowhere,
        parent_pid=os.getpid(),
    )
    inbox: Inbox = SimpleQueue()
    with (
        timing_lock(plan.command, wait=refuse),
        Worker(job, inbox, worker_environment(plan.settings.threads)) as worker,
    ):
        for message in worker.messages(plan.profile.timeout_s):
            match message:
                case Measured(ceilings=ceilings):
                    return ceilings
                case WorkerExit(reason=reason) | Failed(message=reason):
                    raise RetbenchError(f"the ceilings could not be measured: {reason}")
    raise RetbenchError("the ceilings could not be measured: the worker left without a word.")


def _sized(cell: Cell, device_memory_bytes: int | None) -> Cell:
    """A cell at the batch size that it will come to, where that is what it finds."""
    memory_bytes = cell.settings.memory_limit_bytes or device_memory_bytes
    if cell.workload not in FINDS_BATCH or memory_bytes is None:
        return cell
    largest = costs.largest_batch(cell.model, cell.settings.dtype, memory_bytes, cell.point.context_len)
    return cell.model_copy(update={"point": cell.point.model_copy(update={"batch_size": max(1, largest)})})


def _cell_seconds(cell: Cell, ceilings: Ceilings) -> float:
    """Wall time of one cell in one round."""
    settings, point = cell.settings, cell.point
    if cell.workload == "prefill":
        call_s = _prefill_seconds(cell, point.batch_size, point.context_len, ceilings)
        return _calls_seconds(call_s, settings) + _energy_seconds(cell, call_s)
    if cell.workload == "training":
        step_s = training_flops(cell) / ceilings.matmul_flops_per_s / EFFICIENCY
        return 2 * step_s + _calls_seconds(step_s, settings)  # one to begin with, and one that is weighed
    num_bytes = costs.decode_bytes(cell.model, settings.dtype, point.batch_size, point.context_len)
    flops = costs.decode_flops(cell.model, point.batch_size, point.context_len)
    at_best_s = max(num_bytes / ceilings.read_bandwidth_bytes_per_s, flops / ceilings.matmul_flops_per_s)
    step_s = at_best_s / EFFICIENCY
    match cell.workload:
        case "decode":
            return settings.warmup_s + 2 * (settings.min_steps + 1) * step_s + _energy_seconds(cell, step_s)
        case "largest_batch":
            filled_s = FIRST_WRITE * _state_bytes(cell) / ceilings.read_bandwidth_bytes_per_s
            return WORKER_START_S + SEARCH_TRIALS * (filled_s + step_s)
        case _:
            assert cell.workload == "memory"
            return 2 * step_s


def _energy_seconds(cell: Cell, step_s: float) -> float:
    """Wall time of repeating a step for its energy, which a CPU has no counter of."""
    return 0.0 if cell.settings.device == "cpu" else max(WINDOW_S + 2 * UPDATE_S, step_s)


def _calls_seconds(call_s: float, settings: Settings) -> float:
    """Wall time of warming up and timing a long call."""
    calls = MIN_CALLS + more_calls([call_s] * MIN_CALLS, settings.min_steps)
    return max(settings.warmup_s, call_s) + calls * call_s


def _prefill_seconds(cell: Cell, batch_size: int, context_len: int, ceilings: Ceilings) -> float:
    """Wall time of one prefill of so many sequences by a cell's model."""
    flops = prefill_flops(cell, batch_size, context_len)
    return flops / ceilings.matmul_flops_per_s / EFFICIENCY


def _memory_bytes(cell: Cell) -> int:
    """Weights, state, and the widest activations of a block for every token in flight."""
    if cell.workload == "training":
        return estimated_bytes(cell)
    model, dtype, batch_size = cell.model, cell.settings.dtype, cell.point.batch_size
    segment = min(cell.point.context_len, costs.PREFILL_SEGMENT)
    streams = cell.workload in STREAMED and isinstance(model, RetNetConfig)
    tokens = batch_size * segment if cell.workload == "prefill" else max(batch_size, segment * streams)
    mixer = 2 * model.value_dim + 2 * model.d_model if isinstance(model, RetNetConfig) else 3 * model.d_model
    width = model.d_model + max(2 * mixer, 3 * model.ffn_dim)
    activations = (tokens * width + batch_size * model.vocab_size) * DTYPE_BYTES[dtype]
    return costs.weight_bytes(model, dtype) + _state_bytes(cell) + activations


def _state_bytes(cell: Cell) -> int:
    """The state with room for one token more than the cell's context."""
    point = cell.point
    return costs.state_bytes(cell.model, cell.settings.dtype, point.batch_size, point.context_len + 1)
