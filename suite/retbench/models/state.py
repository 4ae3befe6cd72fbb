"""State of a decoder during inference: the states of all layers, and the position.

The state holds the position, and the model advances the state in place.
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
    """Copies of each layer's tensors that later tokens overwrite; empty to restore the position only."""


class DecoderState:
    """The state of a whole decoder.

    Attributes:
        layers: One state per block, without tensors for a block that reads the state of another.
        position: Number of tokens so far, which is the next token's position.
        capacity: Most tokens that fit; None if any number does.
    """

    def __init__(self, layers: list[LayerState], position: int = 0) -> None:
        self.layers = layers
        self.position = position
        rooms = [layer.capacity for layer in layers if layer.capacity is not None]
        self.capacity: int | None = min(rooms) if rooms else None

    @property
    def num_bytes(self) -> int:
        """Total bytes of all layers."""
        return sum(layer.num_bytes for layer in self.layers)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return next(layer for layer in self.layers if layer.tensors).device

    def start_at(self, position: int) -> None:
        """Put a new state at a position; the entries of a cache before it are zero.

        Raises:
            CapacityError: the position does not fit.
        """
        self.require_room(position)
        for layer in self.layers:
            layer.grow(0, position)
        self.position = position

    def require_room(self, num_tokens: int) -> None:
        """Raise CapacityError if `num_tokens` more tokens do not fit."""
        if self.capacity is not None and self.position + num_tokens > self.capacity:
            raise CapacityError(
                f"key-value cache: {num_tokens} tokens at position {self.position} do not fit its capacity of "
                f"{self.capacity}. Allocate more with init_state(batch_size, capacity)."
            )

    def snapshot(self) -> "DecoderState":
        """Return a full copy of the tokens so far, without room for more."""
        return DecoderState([layer.snapshot(self.position) for layer in self.layers], self.position)

    def restore(self, saved: "DecoderState") -> None:
        """Copy the content of `saved`, which stays valid for further calls."""
        if self.capacity is not None and saved.position > self.capacity:
            raise CapacityError(
                f"key-value cache: a state at position {saved.position} does not fit a capacity of {self.capacity}."
            )
        for layer, other in zip(self.layers, saved.layers, strict=True):
            layer.restore(other, saved.position)
        self.position = saved.position

    def mark(self) -> Mark:
        """Return a cheap point to `rewind` to: a copy of overwritten tensors, and only the length of caches.

        It is valid until a position before the mark is written again.
        """
        return Mark(self.position, tuple(layer.overwritten() for layer in self.layers))

    @staticmethod
    def position_mark(position: int) -> Mark:
        """Return a mark that restores a position and leaves the tensors as they are."""
        return Mark(position)

    def rewind(self, mark: Mark) -> None:
        """Restore the state at `mark`."""
        for layer, copies in zip(self.layers, mark.overwritten, strict=bool(mark.overwritten)):
            for name, copied in copies.items():
                layer[name].copy_(copied)
        self.position = mark.position

    def reorder(self, indices: Tensor) -> None:
        """Reorder beams: replace sequence b by a copy of sequence indices[b], (B,) int64."""
        for layer in self.layers:
            layer.reorder(indices, self.position)

    def gather(self, indices: Tensor, capacity: int) -> "DecoderState":
        """Return a new state whose sequence b is a copy of sequence indices[b], (B,) int64 of any B.

        Args:
            indices: Sequences of this state, with repetition.
            capacity: Most tokens that fit into the new state, including those so far.

        Raises:
            CapacityError: the tokens so far do not fit.
        """
        tensors = (one for layer in self.layers for one in layer.layout.values())
        rooms = (one.max_tokens(one.num_tokens(capacity)) for one in tensors)
        if any(room is not None and room < self.position for room in rooms):
            raise CapacityError(
                f"key-value cache: a state at position {self.position} does not fit a capacity of {capacity}."
            )
        layers = [layer.gather(indices, self.position, capacity) for layer in self.layers]
        return DecoderState(layers, self.position)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors to store, by name; the inverse is `load_tensors`."""
        found = {
            f"layers.{index}.{name}": tensor
            for index, layer in enumerate(self.layers)
            for name, tensor in layer.used(self.position).items()
        }
        return {"position": torch.tensor(self.position), **found}

    def load_tensors(self, stored: dict[str, Tensor]) -> None:
        """Restore the state from stored `tensors()`.

        Raises:
            KeyError: a tensor is missing.
            CapacityError: the stored tokens do not fit.
        """
        layers = [
            LayerState({name: stored[f"layers.{index}.{name}"] for name in layer.tensors}, layer.layout)
            for index, layer in enumerate(self.layers)
        ]
        self.restore(DecoderState(layers, int(stored["position"])))
