"""The model that all cells of a job share: how its weights are multiplied and stored, and its equivalence check."""

from functools import partial

import torch

from retbench.checkpoints.loading import import_code, load_model
from retbench.checkpoints.reading import CheckpointInfo, read_checkpoint
from retbench.data import text
from retbench.errors import UnsupportedError
from retbench.measure import products
from retbench.measure.limits import try_in_memory
from retbench.models.build import build_model
from retbench.models.equivalence import LENGTHS, check_equivalence
from retbench.models.language_model import LanguageModel
from retbench.planning.cells import Cell, Weights
from retbench.records.record import Gate
from retbench.running.gates import GATE_DEPTH, QUADRATIC_GATE_DEPTH
from retbench.running.protocol import Job
from retbench.workloads.workload import find_workload


def build(job: Job, device: torch.device) -> LanguageModel:
    """Build the model that all cells of the job share, ready for the first of them."""
    find_products(job, device)
    model = _build_as_stored(job, device)
    set_products(model, device, job.cells[0])
    return model


def build_within_limit(job: Job, device: torch.device) -> LanguageModel | None:
    """Build the model; None where `memory_limit_bytes` leaves no room for it."""
    if job.cells[0].settings.memory_limit_bytes is None:
        return build(job, device)
    return try_in_memory(partial(build, job, device), device)


def find_products(job: Job, device: torch.device) -> None:
    """Measure how models of the run multiply their weights, before one takes its memory, unless a worker has."""
    settings = job.cells[0].settings
    dtype = getattr(torch, settings.dtype)
    products.row_products(device, dtype)
    if device.type == "cpu" and settings.compile:
        products.packing_is_faster(1, dtype)
    for cell in job.cells:
        _reads_by_output(cell, device)


def set_products(model: LanguageModel, device: torch.device, cell: Cell) -> None:
    """Have the model multiply few rows as a cell does it fastest, with weights in the layout that it reads faster."""
    compiled = cell.settings.compile and find_workload(cell.workload).compiles
    model.set_row_products(products.row_products(device, model.dtype, compiled=compiled))
    model.store_weights(by_output=_reads_by_output(cell, device))


def _reads_by_output(cell: Cell, device: torch.device) -> bool:
    """Return whether a cell reads weights faster that are stored by output."""
    if device.type == "cpu" and not find_workload(cell.workload).compiles:
        return False  # on a CPU only decode steps read other weights than a model is built with
    dtype, rows = getattr(torch, cell.settings.dtype), cell.point.batch_size
    return products.storing_by_output_is_faster(device, dtype, compiled=cell.settings.compile, rows=rows)


def _build_as_stored(job: Job, device: torch.device) -> LanguageModel:
    """Build the model with its weights as any model has them."""
    cell = job.cells[0]
    dtype, weights = getattr(torch, cell.settings.dtype), cell.under_test.weights
    if weights is not None:
        return load_model(
            _read_info(weights),
            dtype=dtype,
            device=device,
            backend=cell.backend,
            chunk_size=cell.chunk_size,
            decode_operators=cell.settings.decode_operators,
            runs_code=weights.runs_code,
        )
    return build_model(
        cell.model,
        dtype=dtype,
        device=device,
        seed=cell.settings.seed,
        backend=cell.backend,
        chunk_size=cell.chunk_size,
        decode_operators=cell.settings.decode_operators,
    )


def import_model_code(job: Job) -> None:
    """Import the code that comes with the weights of the job's model, if it has some."""
    if weights := job.cells[0].under_test.weights:
        import_code(_read_info(weights), runs_code=weights.runs_code)


def _read_info(weights: Weights) -> CheckpointInfo:
    """Read the description of weights on a disk."""
    return read_checkpoint(str(weights.path), format=weights.info.format)


def check_gate(job: Job, model: LanguageModel) -> Gate:
    """Run the equivalence check over real text: as deep as the cells go, the kernels can and the memory allows.

    The check holds more than any cell does: two states and the logits of every token, or the input of every mixer. So
    it is tried at half the depth when the memory does not suffice, and if it never does, the cells have not failed.

    Raises:
        UnsupportedError: the memory does not suffice at the shortest depth either.
    """
    limit = model.max_positions
    lengths = tuple(length for length in LENGTHS if limit is None or length <= limit)
    shortest = max(lengths)
    depth = max(shortest, max(cell.point.context_len for cell in job.cells))
    if limit is not None:
        depth = min(depth, limit)
    tokens = text.read_rows(1, min(depth, GATE_DEPTH[model.device.type])).to(model.device)
    # A model of a synthetic task may have fewer tokens than there are bytes.
    tokens = tokens % model.config.vocab_size
    depth = min(tokens.shape[1], QUADRATIC_GATE_DEPTH if _is_quadratic(model, tokens) else depth)
    while (
        gate := try_in_memory(
            partial(check_equivalence, model, tokens, depth=depth, lengths=lengths), model.device
        )
    ) is None:
        if depth == shortest:
            raise UnsupportedError(
                f"the equivalence check of '{job.cells[0].model_name}' runs out of memory on {model.device} even at "
                f"{shortest:,} tokens, and a model that has not passed it is not measured. Free memory there, or use "
                "a smaller size (--set size=...)."
            )
        depth = max(shortest, depth // 2)
    return gate


@torch.inference_mode()
def _is_quadratic(model: LanguageModel, tokens: torch.Tensor) -> bool:
    """Return whether the form or kernel that runs a prompt here holds a score for every pair of tokens."""
    model(tokens[:, : LENGTHS[1]])
    return model.is_quadratic
