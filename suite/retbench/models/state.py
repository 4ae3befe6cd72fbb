"""What inference carries from token to token: the states of all layers, and the position.

Positions live here, never in the caller. A `DecoderState` is advanced in place by the model that it belongs to.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from retbench.errors import CapacityError
from retbench.mixers.state import LayerState


class Mark(NamedTuple):
    """A point to return to; see `DecoderState.mark`."""

    position: int
    overwritten: tuple[dict[str, Tensor], ...] = ()
    """For each layer copies of the tensors that later tokens overwrite; empty to return to the position alone."""


class DecoderState:
    """The state of a whole decoder.

    Attributes:
        layers: One state for each block.
        position: Tokens seen so far; the next token's position.
        capacity: Tokens that there is room for; None where nothing grows with the context.
    """

    def __init__(self, layers: list[LayerState], position: int = 0) -> None:
        self.layers = layers
        self.position = position
        rooms = [layer.capacity for layer in layers if layer.capacity is not None]
        self.capacity: int | None = min(rooms) if rooms else None

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.num_bytes for layer in self.layers)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.layers[0].device

    def require_room(self, num_tokens: int) -> None:
        """CapacityError when `num_tokens` more do not fit."""
        if self.capacity is not None and self.position + num_tokens > self.capacity:
            raise CapacityError(
                f"key-value cache: {num_tokens} tokens at position {self.position} do not fit its capacity of "
                f"{self.capacity}. Allocate more with init_state(batch_size, capacity)."
            )

    def snapshot(self) -> "DecoderState":
        """Return a full copy, of the tokens seen only: its cache has no room for more."""
        return DecoderState([layer.snapshot(self.position) for layer in self.layers], self.position)

    def restore(self, saved: "DecoderState") -> None:
        """Become what `saved` was; any number of times, whatever was done in between."""
        if self.capacity is not None and saved.position > self.capacity:
            raise CapacityError(
                f"key-value cache: a state at position {saved.position} does not fit a capacity of {self.capacity}."
            )
        for layer, other in zip(self.layers, saved.layers, strict=True):
            layer.restore(other, saved.position)
        self.position = saved.position

    def mark(self, num_sequences: int | None = None) -> Mark:
        """Return a cheap point to `rewind` to: what is overwritten is copied, of a cache only the length is noted.

        Good for as long as nothing before the mark's position is written again. With `num_sequences` = 1 the first
        sequence is copied, and all return to it.
        """
        return Mark(self.position, tuple(layer.overwritten(num_sequences) for layer in self.layers))

    def rewind(self, mark: Mark) -> None:
        """Return to `mark`; with every sequence where it is of one."""
        for layer, copies in zip(self.layers, mark.overwritten, strict=bool(mark.overwritten)):
            for name, copied in copies.items():
                layer[name].copy_(copied)
        self.position = mark.position

    def reorder(self, indices: Tensor) -> None:
        """Follow the beams: sequence b becomes a copy of what sequence indices[b], (B,) int64, was."""
        for layer in self.layers:
            layer.reorder(indices, self.position)

    def gather(self, indices: Tensor, capacity: int) -> "DecoderState":
        """Return a new state to branch off with: sequence b is a copy of sequence indices[b], (B,) int64 of any B.

        Args:
            indices: Sequences of this state; one may be taken any number of times.
            capacity: Tokens the new state has room for, those seen so far included.

        Raises:
            CapacityError: less room than the tokens seen so far take.
        """
        if self.capacity is not None and capacity < self.position:
            raise CapacityError(
                f"key-value cache: a state at position {self.position} does not fit a capacity of {capacity}."
            )
        layers = [layer.gather(indices, self.position, capacity) for layer in self.layers]
        return DecoderState(layers, self.position)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything to be stored, by name; `load_tensors` takes it back."""
        found = {
            f"layers.{index}.{name}": tensor
            for index, layer in enumerate(self.layers)
            for name, tensor in layer.used(self.position).items()
        }
        return {"position": torch.tensor(self.position), **found}

    def load_tensors(self, stored: dict[str, Tensor]) -> None:
        """Become the state whose `tensors()` were stored.

        Raises:
            KeyError: a tensor is missing.
            CapacityError: more tokens than this state has room for.
        """
        layers = [
            LayerState({name: stored[f"layers.{index}.{name}"] for name in layer.tensors}, layer.layout)
            for index, layer in enumerate(self.layers)
        ]
        self.restore(DecoderState(layers, int(stored["position"])))
