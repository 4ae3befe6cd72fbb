"""The state of one layer: named tensors whose kind says how they are copied, restored, branched and stored."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from retbench.mixers.mixer import StateTensor

TOKEN_AXIS = 2
"""Dimension of the tokens in per_token tensors, which are (B, heads, tokens, width)."""


class LayerState:
    """The tensors that one layer carries from token to token.

    Attributes:
        tensors: By name, allocated once and written in place, except for concatenated ones.
        layout: What each of them is, by name.
    """

    def __init__(self, tensors: dict[str, Tensor], layout: Mapping[str, StateTensor]) -> None:
        self.tensors = tensors
        self.layout = layout

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor

    @property
    def capacity(self) -> int | None:
        """Tokens that there is room for; None where any number fits, also where windows are whole."""
        found = (self._max_tokens(name) for name in self.layout)
        return min((room for room in found if room is not None), default=None)

    @property
    def num_bytes(self) -> int:
        """Bytes held, those of the whole capacity."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return next(iter(self.tensors.values())).device

    def names(self, *kinds: str) -> list[str]:
        """Return the names of the tensors of some kinds."""
        return [name for name, one in self.layout.items() if one.kind in kinds]

    def append(self, name: str, entries: Tensor, start: int) -> Tensor:
        """Write the entries of new tokens to a per_token tensor; return a view of everything up to their end.

        Args:
            name: Name of the tensor.
            entries: (B, heads, T, width).
            start: Position of the first of them. Later entries of a concatenated tensor are dropped.

        Raises:
            ValueError: a concatenated tensor holds fewer than `start` tokens.
        """
        if self.layout[name].concatenated:
            held = self._held(name, start)
            # Without earlier tokens no dtype is joined: autocast gives entries of another dtype than the weights'.
            self.tensors[name] = torch.cat([held, entries], dim=TOKEN_AXIS) if start else entries.contiguous()
            return self.tensors[name]
        end = start + entries.shape[TOKEN_AXIS]
        self.tensors[name][:, :, start:end] = entries
        return self.tensors[name][:, :, :end]

    def grow(self, start: int, num_tokens: int) -> None:
        """Concatenate zeros for new tokens from position `start` on, where tensors are concatenated."""
        for name in self.names("per_token"):
            if self.layout[name].concatenated:
                batch, heads, _, width = self.tensors[name].shape
                self.append(name, self.tensors[name].new_zeros(batch, heads, num_tokens, width), start)

    def _max_tokens(self, name: str) -> int | None:
        """Return the tokens that fit into a tensor as it is allocated; None where any number does."""
        shape = self.tensors[name].shape
        return self.layout[name].max_tokens(shape[TOKEN_AXIS] if len(shape) > TOKEN_AXIS else 1)

    def _held(self, name: str, length: int) -> Tensor:
        """Return the first `length` tokens of a concatenated tensor; ValueError where it holds fewer."""
        tensor = self.tensors[name]
        if tensor.shape[TOKEN_AXIS] < length:
            raise ValueError(
                f"'{name}' holds {tensor.shape[TOKEN_AXIS]} tokens, and the position is {length}; a new state is put "
                "at a position by DecoderState.start_at"
            )
        return tensor[:, :, :length]

    def used(self, length: int) -> dict[str, Tensor]:
        """Return every tensor after `length` tokens: of per_token ones a view of the part that holds them.

        A ring buffer is filled from the start, so that the entries are the same in one of another capacity.
        """
        return {
            name: tensor[:, :, :length] if self.layout[name].kind == "per_token" else tensor
            for name, tensor in self.tensors.items()
        }

    def snapshot(self, length: int) -> "LayerState":
        """Return a copy of the state after `length` tokens."""
        return LayerState({name: tensor.clone() for name, tensor in self.used(length).items()}, self.layout)

    def restore(self, saved: "LayerState", length: int) -> None:
        """Copy the first `length` tokens of `saved` into these tensors."""
        theirs = saved.used(length)
        for name, tensor in self.used(length).items():
            if self.layout[name].concatenated:
                self.tensors[name] = theirs[name].expand(len(tensor), -1, -1, -1).clone()
            else:
                tensor.copy_(theirs[name])

    def overwritten(self) -> dict[str, Tensor]:
        """Return copies of the tensors that later tokens overwrite: fixed ones and whole windows."""
        names = [name for name in self.layout if self._max_tokens(name) is None]
        return {name: self.tensors[name].clone() for name in names if not self.layout[name].concatenated}

    def reorder(self, indices: Tensor, length: int) -> None:
        """Make sequence b a copy of what sequence indices[b] was."""
        for name, tensor in self.used(length).items():
            chosen = tensor.index_select(0, indices)
            if self.layout[name].concatenated:
                self.tensors[name] = chosen
            else:
                tensor.copy_(chosen)

    def gather(self, indices: Tensor, length: int, capacity: int) -> "LayerState":
        """Return a new state whose sequence b is a copy of sequence indices[b] after `length` tokens."""
        gathered = {}
        for name, tensor in self.used(length).items():
            chosen = tensor.index_select(0, indices)
            if self.layout[name].kind == "per_token" and not self.layout[name].concatenated:
                batch, heads, held, width = chosen.shape
                shape = (batch, heads, self.layout[name].num_tokens(capacity), width)
                room = _zeros(shape, chosen, by_value=self.layout[name].by_value)
                room[:, :, :held] = chosen
                chosen = room
            gathered[name] = chosen
        return LayerState(gathered, self.layout)


def allocate_state(
    layout: Sequence[StateTensor], batch_size: int, capacity: int, like: Tensor, wide: torch.dtype
) -> LayerState:
    """Return the zero state of a layer.

    Args:
        layout: Its tensors.
        batch_size: Sequences.
        capacity: Tokens that per_token tensors have room for, windows at most their own; see `StateTensor.num_tokens`.
            Concatenated ones begin without any.
        like: A weight: the tensors' device, and the dtype of those that are not wide.
        wide: The wider of float32 and the model's dtype.
    """
    tensors = {}
    for one in layout:
        shape = (batch_size, *one.shape)
        if one.kind != "fixed":
            num_tokens = 0 if one.concatenated else one.num_tokens(capacity)
            shape = (batch_size, one.shape[0], num_tokens, *one.shape[1:])
        tensors[one.name] = _zeros(shape, like, dtype=wide if one.wide else like.dtype, by_value=one.by_value)
    return LayerState(tensors, {one.name: one for one in layout})


def _zeros(shape: Sequence[int], like: Tensor, *, dtype: torch.dtype | None = None, by_value: bool) -> Tensor:
    """Return zeros of a shape on the device of a tensor, on a CPU by value where that is asked for."""
    if not by_value or like.device.type != "cpu":
        return like.new_zeros(shape, dtype=dtype)
    *lead, keys, values = shape
    return like.new_zeros(*lead, values, keys, dtype=dtype).mT
