"""The tasks of a worker: prepare a model, measure its cells, measure the ceilings. Imports torch."""

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from retbench.architectures import costs
from retbench.data import text
from retbench.errors import GateError, RetbenchError, StorageError, UnsupportedError
from retbench.measure import allocator, environment, products, source
from retbench.measure.ceilings import measure_ceilings, measure_matmul_rate, with_product_rate
from retbench.measure.clock import has_failed_capture
from retbench.measure.limits import free_memory, is_out_of_memory, limit_memory, make_blas_handles
from retbench.measure.nvml import watch_device
from retbench.models.build import check_model
from retbench.models.compiled import StepCompiler
from retbench.models.language_model import LanguageModel
from retbench.planning.cells import Settings
from retbench.records.documents import write_documents
from retbench.records.record import FAULTY_CEILING, Ceilings, ReadRate, Status, utc_now
from retbench.records.store import append_record
from retbench.running import job_model
from retbench.running.protocol import (
    CELL_MARK,
    Advanced,
    Checked,
    Done,
    Hello,
    Job,
    MeasureCell,
    Measured,
    Message,
    Ready,
    Refused,
    Started,
    Streamed,
)
from retbench.running.recording import Outcome, Surroundings, code_of_cell, make_record, without_trial
from retbench.user_packages import last_call, message_of, package_names
from retbench.workloads.context import Context
from retbench.workloads.states import StateStore, is_streamed, stream_states
from retbench.workloads.workload import find_workload

Send = Callable[[Message], None]

PROGRESS_INTERVAL_S = 1.0
"""Least time between two progress messages: the runner, which may share the cores, must stay idle."""


def do_task(job: Job, send: Send, requests: Iterator[MeasureCell]) -> None:
    """Do the job and report each step.

    An error costs the cells that met it; a StorageError, which would meet any other cell or worker, ends the run.

    Args:
        job: The job.
        send: Sends a message to the runner.
        requests: The runner's requests to a worker that serves.

    Raises:
        RetbenchError: an error that ends the whole run, such as a full disk.
    """
    gc.freeze()  # modules stay; scanning all of them between any two cells takes as long as the cells do
    gc.enable()
    settings = job.cells[0].settings
    environment.pin_process(settings.threads)
    if settings.memory_limit_bytes is not None:
        allocator.return_freed_memory()  # freed memory that is held when the limit is set could be used in addition
    products.agree(job.products)
    if job.run.source is not None:
        source.take_over(job.run.source)
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    facts = {**environment.describe_environment(device, settings.threads), "text": text.fingerprint()}
    send(Hello(environment=facts))
    if facts["code_revision"] != job.run.code_revision:
        raise RetbenchError(
            f"the source of retbench changed during the run, from {job.run.code_revision} to "
            f"{facts['code_revision']}. All measured records are kept; run the same command again."
        )
    _check_codes(job)
    match job.task:
        case "ceilings":
            _check_models(job, device, send)
            send(Measured(ceilings=measure_ceilings(device, dtype)))
        case "prepare":
            _prepare(job, device, _store(job), send)
        case "measure" | "serve":
            in_order = (MeasureCell(index=index, round=job.round) for index in range(len(job.cells)))
            wanted = requests if job.task == "serve" else in_order
            _measure(job, device, Surroundings(facts), send, wanted)


def _check_models(job: Job, device: torch.device, send: Send) -> None:
    """Refuse the cells whose model cannot run here.

    Any other error may be one of a model without values, which this check builds; the run shows those of the model.
    """
    for index, cell in enumerate(job.cells):
        if costs.missing_reason(cell.model) is not None:
            continue
        try:
            check_model(
                cell.model,
                dtype=getattr(torch, cell.settings.dtype),
                device=device,
                backend=cell.backend,
                decode_operators=cell.settings.decode_operators,
            )
        except UnsupportedError as error:
            send(Refused(cells=(index,), status="unsupported", error=str(error)))
        except Exception as error:
            traceback.print_exception(error)


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


@contextmanager
def _refusing(job: Job, cells: Iterable[int], send: Send) -> Iterator[None]:
    """Refuse `cells` of a job, by their index, if the block raises; a StorageError ends the run instead."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        traceback.print_exception(error)
        status, message = without_trial(job.cells[0].model_name, *classify(error))
        send(Refused(cells=tuple(cells), status=status, error=message))


def _prepare(job: Job, device: torch.device, store: StateStore, send: Send) -> None:
    """Run the equivalence check unless an earlier one holds; then stream the states that decode cells start from."""
    gate = None
    with _refusing(job, range(len(job.cells)), send):
        model = job_model.build(job, device)
        gate = job.gate or job_model.check_gate(job, model)
    if gate is None:
        return
    send(Checked(gate=gate, products=products.found()))
    if not gate.passed or not is_streamed(model):
        return
    streamed = [
        index for index, cell in enumerate(job.cells) if find_workload(cell.workload).starts_from_state
    ]

    def report(num_tokens: int, total_tokens: int) -> None:
        send(Streamed(num_tokens=num_tokens, total_tokens=total_tokens))

    if streamed:
        with _refusing(job, streamed, send):
            stream_states(model, [job.cells[index] for index in streamed], store, report)


def _measure(
    job: Job, device: torch.device, surroundings: Surroundings, send: Send, requests: Iterator[MeasureCell]
) -> None:
    """Measure one cell per request; stop where another process must measure the rest."""
    ready: tuple[LanguageModel, Surroundings] | None = None
    with _refusing(job, range(len(job.cells)), send):
        ready = _set_up(job, device, surroundings, send)
    if ready is None:
        return
    model, surroundings = ready
    compiler, read_rates = StepCompiler(model), dict[int, ReadRate]()
    if job.task == "serve":
        send(Ready())
    for request in requests:
        cell = job.cells[request.index]
        print(f"\n{CELL_MARK.decode()}", file=sys.stderr, flush=True)
        send(Started(index=request.index))
        job_model.set_products(model, device, cell)
        context = Context(
            cell,
            model,
            device,
            surroundings.ceilings,
            _store(job),
            compiler,
            job.data_dir,
            CellProgress(send),
            read_rates,
        )
        outcome = _measure_cell(context, job.records_path)
        append_record(job.records_path, make_record(job.run, cell, request.round, outcome, surroundings))
        faulty = FAULTY_CEILING if FAULTY_CEILING in outcome.found.absent.values() else None
        send(Done(index=request.index, status=outcome.status, error=outcome.error or faulty))
        if _is_spoilt(outcome.status, cell.settings):
            return
        del context, outcome
        free_memory(device)
        gc.freeze()  # what outlives a cell stays: scanning what torch's compiler keeps takes 0.2 s


def _set_up(
    job: Job, device: torch.device, surroundings: Surroundings, send: Send
) -> tuple[LanguageModel, Surroundings] | None:
    """Measure the ceilings, build the model, and check it unless an earlier check holds.

    Returns:
        The model and what its records share. None if the check failed, or if the limit of the memory leaves no room for
        the model: its cells are then refused as out of memory.
    """
    settings, gate = job.cells[0].settings, job.gate
    ceilings = _measure_ceilings(job, device)
    if settings.memory_limit_bytes is not None:
        # Threads, buffers of products and what building a model asks for take memory that is not the model's.
        if device.type == "cpu":
            measure_matmul_rate(device, getattr(torch, settings.dtype))
        job_model.find_products(job, device)
        job_model.import_model_code(job)
        limit_memory(settings.memory_limit_bytes, device)
        allocator.keep_small_freed_memory()
    make_blas_handles(
        device, gradients=any(find_workload(cell.workload).computes_gradients for cell in job.cells)
    )
    model = job_model.build_within_limit(job, device)
    if model is None:
        error = (
            f"out of memory: memory_limit_bytes is {settings.memory_limit_bytes:,}, and "
            f"'{job.cells[0].model_name}' cannot be built in so much. Give more (--set memory_limit_bytes=...)."
        )
        send(Refused(cells=tuple(range(len(job.cells))), status="oom", error=error))
        return None
    if gate is None:
        gate = job_model.check_gate(job, model)
    if ceilings is not None:
        ceilings = _best_ceilings(ceilings, job, device, send)
    free_memory(device)  # every cell must begin with the same reserved memory, whichever is the first
    gc.freeze()  # each trial of a batch would else scan the whole library that a model of transformers loads
    if job.gate is None or products.found() != job.products:
        send(Checked(gate=gate, products=products.found()))
    # Later runs multiply as this one does.
    facts = surroundings.environment | {"products": products.found(), "trials_code": job.run.trials_code}
    return (model, Surroundings(facts, gate, ceilings)) if gate.passed else None


def _measure_ceilings(job: Job, device: torch.device) -> Ceilings | None:
    """Measure the ceilings if a cell needs them; the read curve is that of the job, if it has one."""
    if not any(find_workload(cell.workload).needs_ceilings for cell in job.cells):
        return None
    read_curve = job.ceilings.read_curve if job.ceilings else ()
    return measure_ceilings(device, getattr(torch, job.cells[0].settings.dtype), read_curve)


def _best_ceilings(ceilings: Ceilings, job: Job, device: torch.device, send: Send) -> Ceilings:
    """Return the ceilings with the best product rate that is known; send it to the runner if it is this worker's.

    A rate that was measured while other processes disturbed it is too low. The first worker of a run, for which there
    is no other, measures it again some time after it has first.
    """
    settings, known = job.cells[0].settings, job.ceilings
    if known is None and settings.memory_limit_bytes is None:
        ceilings = with_product_rate(ceilings, device, getattr(torch, settings.dtype))
    if known is not None and known.matmul_flops_per_s >= ceilings.matmul_flops_per_s:
        return ceilings.model_copy(update={"matmul_flops_per_s": known.matmul_flops_per_s})
    send(Measured(ceilings=ceilings))
    return ceilings


def _is_spoilt(status: Status, settings: Settings) -> bool:
    """Return whether this process cannot measure another cell after this outcome.

    It cannot after a cell that failed, that found the host's memory full, or whose capture as a CUDA graph failed. A
    full GPU is emptied.
    """
    return status == "failed" or (status == "oom" and settings.device == "cpu") or has_failed_capture()


def _measure_cell(context: Context, records_path: Path) -> Outcome:
    """Measure one cell; running out of memory is an outcome like any other."""
    started_at = utc_now()
    try:
        with watch_device(context.device) as watch:
            found = find_workload(context.cell.workload).run(context)
        name = f"{records_path.stem}-{context.cell.cell_id}"
        documents = write_documents(records_path.parent, name, found.documents) if found.documents else None
    except StorageError:
        raise
    except Exception as error:
        traceback.print_exception(error)
        status, message = classify(error)
        return Outcome(status, started_at, message)
    found = replace(found, absent={**watch.absent, **found.absent})
    return Outcome("ok", started_at, found=found, documents=documents, device_facts=watch.facts)


class CellProgress:
    """Report the tokens that a cell has read, at most once per `PROGRESS_INTERVAL_S`.

    Without these messages, a cell that takes hours would count as one that hangs.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._num_tokens = 0
        self._sent_s = time.monotonic()

    def __call__(self, num_tokens: int) -> None:
        """Add `num_tokens` that were read."""
        self._num_tokens += num_tokens
        now_s = time.monotonic()
        if now_s - self._sent_s >= PROGRESS_INTERVAL_S:
            self._sent_s = now_s
            self._send(Advanced(num_tokens=self._num_tokens))


def classify(error: Exception) -> tuple[Status, str]:
    """Return status and message of a cell whose measurement raised `error`."""
    if isinstance(error, UnsupportedError):
        return "unsupported", str(error)
    if isinstance(error, GateError):
        return "gate_failed", str(error)
    if isinstance(error, RetbenchError):  # its message is written for the user and names the place
        return "failed", str(error)
    message = message_of(error)
    if is_out_of_memory(error):
        return "oom", f"out of memory: {message}"
    call = last_call(error, package_names())
    return "failed", f"{type(error).__name__} at {Path(call.path).name}:{call.line}: {message}"
