"""The states that decode steps start from: streamed through real text, or a cache filled to the same scale.

A retention state is what real text leaves behind: one streamed prefill of one sequence to the deepest depth, with a
snapshot stored just before each depth, shared by all rounds, all batch sizes and a resumed run; every sequence of a
batch starts from the same snapshot. A key-value cache would cost a whole prefill of its own at every depth, and what
is in it does not change the time of a step: it is filled with normal numbers of the standard deviation that a real
prefill leaves in each layer.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from retbench.architectures.costs import PREFILL_SEGMENT
from retbench.data import text
from retbench.errors import StorageError
from retbench.files import write_atomic
from retbench.mixers.state import TOKEN_AXIS
from retbench.models.language_model import LanguageModel
from retbench.models.state import DecoderState
from retbench.planning.cells import Cell

FILL_PREFILL_TOKENS = 512
"""Length of the real prefill that a key-value cache's scale is taken from, unless a model has fewer positions."""

_DRAWN_TOKENS = 2048
"""Most tokens whose entries are drawn: copying them takes a fraction of the time of drawing more."""


class StateStore:
    """Snapshots in a folder, one file each, written whole or not at all.

    Args:
        folder: Folder of the files; it is made when the first is stored.
        code_revision: Revision of the code that computes them; a state of other code is not found.
    """

    def __init__(self, folder: Path, code_revision: str) -> None:
        self._folder = folder
        self._code_revision = code_revision

    def _path(self, cell: Cell, position: int) -> Path:
        """Return the file of one sequence's state after `position` tokens, named by all that its values depend on."""
        weights = cell.under_test.weights
        parts = {
            "model": cell.model.fingerprint,
            "weights": weights.info.fingerprint if weights else None,
            "backend": cell.backend,
            "chunk_size": cell.chunk_size,
            "dtype": cell.settings.dtype,
            "device": cell.settings.device.partition(":")[0],
            "seed": cell.settings.seed,
            "code_revision": self._code_revision,
            "text": text.fingerprint(),
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return self._folder / f"{key}-{position}.safetensors"

    def holds(self, cell: Cell, position: int) -> bool:
        """Return whether the state is stored; the state at position 0 need not be."""
        return position == 0 or self._path(cell, position).exists()

    def save(self, cell: Cell, state: DecoderState) -> None:
        """Store a state under its position.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors().items()}
        write_atomic(self._path(cell, state.position), save(tensors))

    def load(self, cell: Cell, state: DecoderState, position: int) -> None:
        """Make every sequence of `state` what was stored after `position` tokens; at 0 it stays as it is.

        Raises:
            StorageError: the file has gone, or cannot be read.
        """
        if not position:
            return
        path = self._path(cell, position)
        try:
            tensors = load_file(path, device=str(state.device))
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{path}: the state that the run has stored here cannot be read ({error}). Leave the folder of the "
                "results as it is during a run, and run the same command again."
            ) from error
        state.load_tensors(tensors)


def is_streamed(model: LanguageModel) -> bool:
    """Return whether decode cells start from a streamed state: where nothing grows with the context."""
    return not model.config.grows


@torch.inference_mode()
def stream_states(
    model: LanguageModel, cells: Sequence[Cell], store: StateStore, report: Callable[[int, int], None]
) -> None:
    """Stream one sequence of real text through a model and store its state one token before each cell's depth.

    Args:
        model: The model.
        cells: Decode cells of this model.
        store: Receives the states; those that it holds already are not computed again.
        report: Called with the tokens done and the tokens in all, before the first segment and after each.

    Raises:
        StorageError: a state could not be stored.
    """
    cell, positions = cells[0], sorted({cell.point.context_len - 1 for cell in cells})
    missing = [position for position in positions if not store.holds(cell, position)]
    if not missing:
        return
    deepest = missing[-1]
    start = max((position for position in positions if position < missing[0]), default=0)
    state = model.init_state(1, 0)
    store.load(cell, state, start)
    tokens = text.read_rows(1, deepest).to(state.device)
    report(start, deepest)
    for position in (position for position in positions if start < position <= deepest):
        while state.position < position:
            end = min(position, state.position + PREFILL_SEGMENT)
            model.prefill(tokens[:, state.position : end], state)
            report(state.position, deepest)
        store.save(cell, state)


def fill_prefill_tokens(model: LanguageModel) -> int:
    """Return the tokens of the real prefill that the scale of a model's caches is taken from."""
    return min(FILL_PREFILL_TOKENS, model.max_positions or FILL_PREFILL_TOKENS)


@torch.inference_mode()
def prefilled_state(model: LanguageModel) -> DecoderState:
    """Return the state that a real prefill of `fill_prefill_tokens` leaves: caches take their scale from it."""
    num_tokens = fill_prefill_tokens(model)
    state = model.init_state(1, num_tokens)
    model.prefill(text.read_rows(1, num_tokens).to(state.device), state)
    return state


def cache_scales(model: LanguageModel) -> list[dict[str, float]]:
    """Return for each layer the standard deviation of each tensor that grows with the context, by name."""
    return [scales for scales, _ in _prefilled_layers(model)]


@lru_cache(maxsize=1)  # a worker has one model
@torch.inference_mode()
def _prefilled_layers(model: LanguageModel) -> list[tuple[dict[str, float], dict[str, Tensor]]]:
    """Return what `fill_caches` needs of each layer of the real prefill: the scales, and the other tensors.

    The tensors that grow with the context are not kept: they would take memory from every cell.
    """
    return [
        (
            {name: float(layer[name].float().std()) for name in layer.names("per_token")},
            {name: layer[name] for name in layer.names("fixed")},
        )
        for layer in prefilled_state(model).layers
    ]


@torch.inference_mode()
def fill_caches(model: LanguageModel, state: DecoderState, position: int, seed: int) -> None:
    """Make `state` stand at `position`.

    What grows with the context is filled with normal numbers of each layer's scale, drawn for some tokens of one
    sequence and repeated; the other tensors of a hybrid are those of the real prefill.
    """
    state.start_at(position)
    generator = torch.Generator(state.device).manual_seed(seed)
    for layer, (scales, prefilled) in zip(state.layers, _prefilled_layers(model), strict=True):
        for name, std in scales.items():
            stored = layer[name]
            written, rest = stored.tensor_split([position], dim=TOKEN_AXIS)
            pieces = written.split(_DRAWN_TOKENS, dim=TOKEN_AXIS)
            # Drawn into a new tensor: torch takes many times as long to draw into a slice.
            drawn = torch.empty_like(pieces[0][:1]).normal_(0.0, std, generator=generator)
            for piece in pieces:
                piece.copy_(drawn[:, :, : piece.shape[TOKEN_AXIS]])
            rest.zero_()
        for name, tensor in prefilled.items():
            layer[name].copy_(tensor)
