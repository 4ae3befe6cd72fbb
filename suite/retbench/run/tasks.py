"""The tasks of a worker: prepare a model, measure its cells, measure the ceilings. Imports torch."""

import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from retbench.checkpoints.loading import load_checkpoint
from retbench.data import text
from retbench.errors import RetbenchError, StorageError, UnsupportedError
from retbench.measure import environment
from retbench.measure.ceilings import measure_ceilings
from retbench.measure.limits import is_out_of_memory, limit_memory
from retbench.measure.nvml import DeviceWatch
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.models.equivalence import LENGTHS, check_equivalence
from retbench.planning.cells import Cell
from retbench.records.documents import write_documents
from retbench.records.record import Documents, Gate, append_record, utc_now
from retbench.run.failures import classify
from retbench.run.heartbeat import Heartbeat
from retbench.run.protocol import (
    CELL_MARK,
    Checked,
    Done,
    Hello,
    Job,
    Measured,
    Message,
    Ready,
    Refused,
    Started,
    Streamed,
    Visit,
)
from retbench.run.recording import Outcome, Surroundings, code_of_cell, make_record
from retbench.workloads.context import Context
from retbench.workloads.states import StateStore, is_streamed, stream_states
from retbench.workloads.workload import Measurement, find_workload

Tell = Callable[[Message], None]

GATE_DEPTH = {"cpu": 4096, "cuda": 32768}
"""Deepest state that the gate streams and compares with a whole pass, unless no cell is as deep."""

QUADRATIC_GATE_DEPTH = 4096
"""The same where a whole pass holds a score for every pair of tokens."""

_QUADRATIC_KERNEL = "sdpa:math"
"""Kernel of torch of which that is true whatever the form, as a model says afterwards what ran."""


def do_task(job: Job, tell: Tell, visits: Iterator[Visit]) -> None:
    """Do what the job says and tell of it.

    An error costs the cells that met it; a StorageError, which no other cell or worker would escape, ends the run.

    Args:
        job: The job.
        tell: Sends a message to the runner.
        visits: What the runner asks of a worker that serves.

    Raises:
        RetbenchError: something that ends the whole run, such as a full disk.
    """
    gc.freeze()  # modules stay; looking through them all between any two cells takes as long as the cells do
    gc.enable()
    settings = job.cells[0].settings
    environment.pin_process(settings.threads)
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    facts = {**environment.describe_environment(device, settings.threads), "text": text.fingerprint()}
    if device.type == "cuda":
        torch.cuda.set_device(device)  # kernels that are not torch's own go to the current one
    tell(Hello(environment=facts))
    if facts["code_revision"] != job.run.code_revision:
        raise RetbenchError(
            f"the source of retbench changed during the run, from {job.run.code_revision} to "
            f"{facts['code_revision']}. What was measured is kept; run the same command again."
        )
    _check_codes(job)
    match job.task:
        case "ceilings":
            tell(Measured(ceilings=measure_ceilings(device, dtype)))
        case "prepare":
            _prepare(job, device, _store(job), tell)
        case "measure":
            _measure(job, device, Surroundings(facts, job.gate), tell)
        case "serve":
            _serve(job, device, Surroundings(facts, job.gate), tell, visits)


def _check_codes(job: Job) -> None:
    """Refuse to measure where the source of a model or workload has changed since the run began."""
    for cell in job.cells:
        code = code_of_cell(cell)
        if code != job.run.codes.get(cell.cell_id, code):
            raise RetbenchError(
                f"the source of '{cell.model_name}' or of workload '{cell.workload}' changed during the run. What was "
                "measured is kept; run the same command again."
            )


def _store(job: Job) -> StateStore:
    """Return the store of streamed states that the job's code and model leave."""
    return StateStore(job.states_dir, f"{job.run.code_revision} {code_of_cell(job.cells[0])['model_code']}")


def _build(job: Job, device: torch.device) -> Decoder:
    """The model that all cells of the job share."""
    cell = job.cells[0]
    dtype, weights = getattr(torch, cell.settings.dtype), cell.subject.weights
    if weights is not None:
        return load_checkpoint(
            weights.path, dtype=dtype, device=device, backend=cell.backend, chunk_size=cell.chunk_size
        )
    return build_model(
        cell.model,
        dtype=dtype,
        device=device,
        seed=cell.settings.seed,
        backend=cell.backend,
        chunk_size=cell.chunk_size,
    )


def _refusal(cells: tuple[int, ...], error: Exception) -> Refused:
    """That `cells` cannot be measured because of `error`; its traceback goes to stderr."""
    traceback.print_exception(error)
    status, message = classify(error)
    return Refused(cells=cells, status=status, error=message)


def _prepare(job: Job, device: torch.device, store: StateStore, tell: Tell) -> None:
    """Run the gate; after a green one, stream the states that decode cells start from."""
    try:
        model = _build(job, device)
        gate = _check_gate(job, model)
    except StorageError:
        raise
    except Exception as error:
        tell(_refusal(tuple(range(len(job.cells))), error))
        return
    tell(Checked(gate=gate))
    if not gate.passed or not is_streamed(model):
        return
    decoding = tuple(
        index for index, cell in enumerate(job.cells) if find_workload(cell.workload).starts_from_state
    )
    if decoding:
        _stream(job, model, decoding, store, tell)


def _check_gate(job: Job, model: Decoder) -> Gate:
    """The gate of a model, over real text: as deep as its cells go, its kernels can and the memory allows.

    It holds more than any cell does, two states and the logits of every token, or what enters every mixer. So it is
    tried at half the depth where the memory does not suffice, and that it never does says nothing of the cells.

    Raises:
        UnsupportedError: the memory does not suffice at the shortest depth either.
    """
    shortest = max(LENGTHS)
    depth = max(shortest, max(cell.point.context_len for cell in job.cells))
    tokens = text.read_rows(1, min(depth, GATE_DEPTH[model.device.type])).to(model.device)
    depth = min(tokens.shape[1], QUADRATIC_GATE_DEPTH if _is_quadratic(model, tokens) else depth)
    while (gate := _gate_that_fits(model, tokens, depth)) is None:
        _let_go(model.device)
        if depth == shortest:
            raise UnsupportedError(
                f"the equality gate of '{job.cells[0].model_name}' runs out of memory on {model.device} even at "
                f"{shortest:,} tokens, and no model is measured that has not passed it. Free memory there, or use a "
                "smaller size (--set size=...)."
            )
        depth = max(shortest, depth // 2)
    return gate


@torch.inference_mode()
def _is_quadratic(model: Decoder, tokens: torch.Tensor) -> bool:
    """Whether the form or kernel that a prompt runs with here holds a score for every pair of tokens."""
    forms = {mixer.config.forms[mixer.backend].quadratic for mixer in model.mixers}
    model(tokens[:, : LENGTHS[1]])
    return True in forms or _QUADRATIC_KERNEL in model.executed_backends()["prefill"].split("+")


def _gate_that_fits(model: Decoder, tokens: torch.Tensor, depth: int) -> Gate | None:
    """The gate at a depth; None where the memory does not suffice for it."""
    try:
        return check_equivalence(model, tokens, depth=depth)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None  # here, where no traceback holds the tensors of the pass that failed


def _stream(job: Job, model: Decoder, cells: tuple[int, ...], store: StateStore, tell: Tell) -> None:
    """Stream the states of decode cells; they are refused where that fails."""

    def report(num_tokens: int, total_tokens: int) -> None:
        tell(Streamed(num_tokens=num_tokens, total_tokens=total_tokens))

    try:
        stream_states(model, [job.cells[index] for index in cells], store, report)
    except StorageError:
        raise
    except Exception as error:
        tell(_refusal(cells, error))


def _let_go(device: torch.device) -> None:
    """Free what the last measurement left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Bench:
    """A worker set up to measure: its model built, its ceilings measured."""

    job: Job
    model: Decoder
    device: torch.device
    surroundings: Surroundings
    store: StateStore
    tell: Tell

    def measure(self, index: int, round_number: int) -> bool:
        """Measure a cell and write its record; whether the process can be trusted with another one.

        It cannot after a cell that failed, that found the host's memory full, or whose step no CUDA graph could hold:
        a capture that failed leaves the allocator in it (pytorch#180395). A full GPU is emptied.
        """
        job, cell = self.job, self.job.cells[index]
        ceilings = self.surroundings.ceilings
        assert ceilings is not None
        print(f"\n{CELL_MARK.decode()}", file=sys.stderr, flush=True)
        self.tell(Started(index=index))
        context = Context(
            cell, self.model, self.device, ceilings, self.store, job.data_dir, Heartbeat(self.tell)
        )
        outcome = _measure_cell(context, job.records_path)
        append_record(job.records_path, make_record(job.run, cell, round_number, outcome, self.surroundings))
        self.tell(Done(index=index, status=outcome.status, error=outcome.error))
        leave = {"failed": True, "oom": self.device.type == "cpu", "unsupported": cell.settings.cuda_graph}
        if leave.get(outcome.status, False):
            return False
        _let_go(self.device)
        return True


def _set_up(job: Job, device: torch.device, surroundings: Surroundings, tell: Tell) -> _Bench | None:
    """Measure the ceilings and build the model; None where that fails, with all cells refused."""
    settings = job.cells[0].settings
    try:
        ceilings = measure_ceilings(device, getattr(torch, settings.dtype))
        if settings.memory_limit_bytes is not None:
            limit_memory(settings.memory_limit_bytes, device)
        model = _build(job, device)
    except StorageError:
        raise
    except Exception as error:
        tell(_refusal(tuple(range(len(job.cells))), error))
        return None
    store = _store(job)
    return _Bench(job, model, device, replace(surroundings, ceilings=ceilings), store, tell)


def _measure(job: Job, device: torch.device, surroundings: Surroundings, tell: Tell) -> None:
    """Measure each cell in the order given; leave where another process had better measure the rest."""
    bench = _set_up(job, device, surroundings, tell)
    if bench is not None:
        for index in range(len(job.cells)):
            if not bench.measure(index, job.round):
                return


def _serve(
    job: Job, device: torch.device, surroundings: Surroundings, tell: Tell, visits: Iterator[Visit]
) -> None:
    """Measure a cell each time that one is asked for; leave like a worker that measures them all."""
    bench = _set_up(job, device, surroundings, tell)
    if bench is not None:
        tell(Ready())
        for visit in visits:
            if not bench.measure(visit.index, visit.round):
                return


def _measure_cell(context: Context, records_path: Path) -> Outcome:
    """What came of one cell; running out of memory is an outcome like any other."""
    started_at = utc_now()
    watch = DeviceWatch(context.device)
    try:
        with watch:
            found = find_workload(context.cell.workload).run(context)
        documents = _store_documents(found, context.cell, records_path)
    except StorageError:
        raise
    except Exception as error:
        traceback.print_exception(error)
        status, message = classify(error)
        return Outcome(status, started_at, message)
    return Outcome(
        "ok",
        started_at,
        metrics=found.metrics,
        series=found.series,
        documents=documents,
        absent={**watch.absent, **found.absent},
        backend=found.backend,
        device_facts=watch.facts,
    )


def _store_documents(found: Measurement, cell: Cell, records_path: Path) -> Documents | None:
    """Write the results of single documents beside the record file, if there are any."""
    if not found.documents:
        return None
    return write_documents(records_path.parent, f"{records_path.stem}-{cell.cell_id}", found.documents)
