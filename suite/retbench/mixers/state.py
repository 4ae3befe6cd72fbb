"""The state of one layer: named tensors whose kind says how they are copied, restored, branched and stored."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from retbench.mixers.mixer import StateTensor

TOKEN_AXIS = 2
"""Dimension of the tokens in per_token and window tensors, which are (B, heads, tokens, width)."""


class LayerState:
    """The tensors that one layer carries from token to token.

    Attributes:
        tensors: By name, allocated once and written in place.
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
        """Tokens that there is room for; None where nothing grows with the context."""
        rooms = [self.tensors[name].shape[TOKEN_AXIS] for name in self.names("per_token")]
        return min(rooms) if rooms else None

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

    def used(self, length: int) -> dict[str, Tensor]:
        """Return every tensor after `length` tokens: of per_token ones a view of the part that holds them."""
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
            tensor.copy_(theirs[name])

    def overwritten(self, num_sequences: int | None) -> dict[str, Tensor]:
        """Return copies of the tensors that later tokens overwrite: all but the per_token ones."""
        return {name: self.tensors[name][:num_sequences].clone() for name in self.names("fixed", "window")}

    def reorder(self, indices: Tensor, length: int) -> None:
        """Make sequence b a copy of what sequence indices[b] was."""
        for tensor in self.used(length).values():
            tensor.copy_(tensor.index_select(0, indices))

    def gather(self, indices: Tensor, length: int, capacity: int) -> "LayerState":
        """Return a new state whose sequence b is a copy of sequence indices[b] after `length` tokens."""
        gathered = {}
        for name, tensor in self.used(length).items():
            chosen = tensor.index_select(0, indices)
            if self.layout[name].kind == "per_token":
                batch, heads, _, width = chosen.shape
                room = chosen.new_empty(batch, heads, capacity, width)
                room[:, :, :length] = chosen
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
        capacity: Tokens that per_token tensors have room for.
        like: A weight: the tensors' device, and the dtype of those that are not wide.
        wide: The wider of float32 and the model's dtype.
    """
    tensors = {}
    for one in layout:
        shape = (batch_size, *one.shape)
        if one.kind != "fixed":
            shape = (batch_size, one.shape[0], one.num_tokens(capacity), *one.shape[1:])
        tensors[one.name] = torch.zeros(shape, dtype=wide if one.wide else like.dtype, device=like.device)
    return LayerState(tensors, {one.name: one for one in layout})
