"""What inference carries from token to token: a retention state of fixed size, or a pre-allocated key-value cache.

Positions live here, never in the caller. A `DecoderState` is advanced in place by the model that it belongs to.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from retbench.errors import CapacityError


class RetentionState:
    """State of one retention layer: (B, H, K, V), the same size at every position."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self.values.nbytes

    def snapshot(self, length: int) -> "RetentionState":
        """A copy; a retention state is whole at any `length`."""
        return RetentionState(self.values.clone())

    def restore(self, saved: "LayerState", length: int) -> None:
        """Take over the values of `saved`, in place."""
        assert isinstance(saved, RetentionState)
        self.values.copy_(saved.values)

    def reorder(self, indices: Tensor, length: int) -> None:
        """Sequence b becomes a copy of what sequence indices[b] was."""
        self.values.copy_(self.values.index_select(0, indices))

    def gather(self, indices: Tensor, length: int, capacity: int) -> "RetentionState":
        """A new state whose sequence b is a copy of sequence indices[b]; `capacity` does not matter to retention."""
        return RetentionState(self.values.index_select(0, indices))

    def tensors(self, length: int) -> dict[str, Tensor]:
        """Everything to be stored, by name."""
        return {"values": self.values}


class KVCache:
    """Keys and values of one attention layer, (B, Hkv, capacity, K) each, allocated once and written in place."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    @property
    def capacity(self) -> int:
        """Tokens there is room for."""
        return self.keys.shape[2]

    @property
    def num_bytes(self) -> int:
        """Bytes held: those of the whole capacity."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, Hkv, T, K) at position `start`; returns views of everything up to their end."""
        end = start + keys.shape[2]
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]

    def snapshot(self, length: int) -> "KVCache":
        """A copy of the first `length` tokens."""
        return KVCache(self.keys[:, :, :length].clone(), self.values[:, :, :length].clone())

    def restore(self, saved: "LayerState", length: int) -> None:
        """Take over the first `length` tokens of `saved`, in place."""
        assert isinstance(saved, KVCache)
        self.keys[:, :, :length] = saved.keys[:, :, :length]
        self.values[:, :, :length] = saved.values[:, :, :length]

    def reorder(self, indices: Tensor, length: int) -> None:
        """Sequence b becomes a copy of what sequence indices[b] was, for the first `length` tokens."""
        for cached in (self.keys, self.values):
            used = cached[:, :, :length]
            used.copy_(used.index_select(0, indices))

    def gather(self, indices: Tensor, length: int, capacity: int) -> "KVCache":
        """A new cache whose sequence b starts with the first `length` tokens of sequence indices[b]."""
        gathered = []
        for cached in (self.keys, self.values):
            _, heads, _, width = cached.shape
            room = cached.new_empty(len(indices), heads, capacity, width)
            room[:, :, :length] = cached[:, :, :length].index_select(0, indices)
            gathered.append(room)
        return KVCache(*gathered)

    def tensors(self, length: int) -> dict[str, Tensor]:
        """Everything to be stored, by name: the first `length` tokens."""
        return {"keys": self.keys[:, :, :length], "values": self.values[:, :, :length]}


LayerState = RetentionState | KVCache


class Mark(NamedTuple):
    """A point to return to; see `DecoderState.mark`."""

    position: int
    retention: list[Tensor | None]


class DecoderState:
    """The state of a whole decoder.

    Attributes:
        layers: One state a block.
        position: Tokens seen so far; the next token's position.
        capacity: Tokens that the key-value caches have room for; None where no layer has one.
    """

    def __init__(self, layers: list[LayerState], position: int = 0) -> None:
        self.layers = layers
        self.position = position
        rooms = [layer.capacity for layer in layers if isinstance(layer, KVCache)]
        self.capacity: int | None = min(rooms) if rooms else None

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.num_bytes for layer in self.layers)

    def require_room(self, num_tokens: int) -> None:
        """CapacityError when `num_tokens` more do not fit."""
        if self.capacity is not None and self.position + num_tokens > self.capacity:
            raise CapacityError(
                f"key-value cache: {num_tokens} tokens at position {self.position} do not fit its capacity of "
                f"{self.capacity}. Allocate more with init_state(batch_size, capacity)."
            )

    def snapshot(self) -> "DecoderState":
        """A full copy, of the tokens seen only: its cache has no room for more."""
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
        """A cheap point to `rewind` to: retention copies its fixed size, a key-value cache only notes its length.

        Good for as long as nothing before the mark's position is written again. With `num_sequences` = 1 retention
        copies that of the first sequence, and all return to it.
        """
        copies = [
            layer.values[:num_sequences].clone() if isinstance(layer, RetentionState) else None
            for layer in self.layers
        ]
        return Mark(self.position, copies)

    def rewind(self, mark: Mark) -> None:
        """Return to `mark`; with every sequence where it is of one."""
        for layer, values in zip(self.layers, mark.retention, strict=True):
            if isinstance(layer, RetentionState) and values is not None:
                layer.values.copy_(values)
        self.position = mark.position

    def reorder(self, indices: Tensor) -> None:
        """Follow the beams: sequence b becomes a copy of what sequence indices[b], (B,) int64, was."""
        for layer in self.layers:
            layer.reorder(indices, self.position)

    def gather(self, indices: Tensor, capacity: int) -> "DecoderState":
        """A new state to branch off with: sequence b is a copy of sequence indices[b], (B,) int64 of any B.

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
        return DecoderState(
            [layer.gather(indices, self.position, capacity) for layer in self.layers], self.position
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything to be stored, by name; `load_tensors` takes it back."""
        found = {
            f"layers.{index}.{name}": tensor
            for index, layer in enumerate(self.layers)
            for name, tensor in layer.tensors(self.position).items()
        }
        return {"position": torch.tensor(self.position), **found}

    def load_tensors(self, stored: dict[str, Tensor]) -> None:
        """Become the state whose `tensors()` were stored.

        Raises:
            KeyError: a tensor is missing.
            CapacityError: more tokens than this state has room for.
        """
        position = int(stored["position"])
        layers: list[LayerState] = []
        for index, layer in enumerate(self.layers):
            if isinstance(layer, RetentionState):
                layers.append(RetentionState(stored[f"layers.{index}.values"]))
            else:
                layers.append(KVCache(stored[f"layers.{index}.keys"], stored[f"layers.{index}.values"]))
        self.restore(DecoderState(layers, position))
