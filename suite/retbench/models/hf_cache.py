"""transformers' static cache: its tensors, layer by layer, as those of a state."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retbench.errors import UnsupportedError
from retbench.mixers.mixer import StateKind, StateTensor
from retbench.mixers.state import LayerState


class Slot(NamedTuple):
    """One tensor of a layer of a cache."""

    kind: StateKind
    shape: tuple[int, ...]
    """Shape for one sequence, without the token axis that per_token tensors have after their first axis."""
    dtype: torch.dtype


def new_cache(inner: Any, capacity: int) -> Any:
    """Return transformers' static cache, whose tensors are not allocated yet.

    Layers with transformers' usual window are those of `_with_kept_index`; a model may bring others, which stay.
    """
    from transformers import StaticCache
    from transformers.cache_utils import StaticSlidingWindowLayer

    found = StaticCache(config=inner.config, max_cache_len=capacity)
    for layer in found.layers:
        if getattr(type(layer), "update", None) is StaticSlidingWindowLayer.update:
            layer.__class__ = _with_kept_index(layer.__class__)
    return found


@cache
def _with_kept_index(kind: Any) -> type:
    """Return the class of a layer with a window whose steps copy nothing from the host.

    A step of one token from a full window writes its entries by an index that transformers makes anew from a Python
    number, in every layer (transformers 5.24, `StaticSlidingWindowLayer.update`). On a GPU that is a copy that the host
    waits for: it costs time, and it cannot be captured in a CUDA graph. Here the index is made with the cache. The
    other operators are the same.
    """

    class Window(kind):  # type: ignore[misc]
        _layer_type = None  # a name would make transformers take this class for the layers of all caches

        def lazy_initialization(self, *tensors: Tensor, **states: Any) -> None:
            super().lazy_initialization(*tensors, **states)
            self.last = torch.tensor([-1], device=self.device)

        def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if keys.shape[-2] > 1 or self.cumulative_length_int < self.max_cache_len:
                found: tuple[Tensor, Tensor] = super().update(keys, values, *args, **kwargs)
                return found
            self.cumulative_length_int += 1
            for kept, new in ((self.keys, keys), (self.values, values)):
                moved = kept.roll(-1, dims=-2)
                moved[:, :, self.last] = new
                kept.copy_(moved)
            return self.keys, self.values

    return Window


def _named_tensors(layer: Any) -> Mapping[str, Tensor]:
    """Return the allocated tensors of a layer of a cache."""
    found = {name: getattr(layer, name, None) for name in ("keys", "values")}
    for name in ("conv_states", "recurrent_states"):
        found |= {f"{name}.{index}": one for index, one in getattr(layer, name, {}).items()}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _kind_of(layer: Any, name: str) -> StateKind:
    """Return the kind of a tensor of a layer.

    Raises:
        UnsupportedError: transformers keeps more in such a layer than is known here.
    """
    if "." in name:
        return "fixed"
    if not hasattr(layer, "cumulative_length") or hasattr(layer, "indexer_cumulative_length"):
        raise UnsupportedError(
            f"the cache of the model has a layer of the kind {type(layer).__name__}, which cannot be copied and "
            "rewound here."
        )
    return "per_token"


def slots_of(layer: Any) -> dict[str, Slot]:
    """Describe the tensors of a layer that a pass has allocated."""
    found = {}
    for name, tensor in _named_tensors(layer).items():
        kind = _kind_of(layer, name)
        shape = tuple(tensor.shape[1:])
        found[name] = Slot(kind, shape if kind == "fixed" else (shape[0], *shape[2:]), tensor.dtype)
    return found


def allocate(layer: Any, slots: Mapping[str, Slot], batch_size: int, device: torch.device) -> None:
    """Allocate the tensors of a new layer by transformers' own initialisation."""
    empty = {
        name: torch.zeros(
            (batch_size, *slot.shape)
            if slot.kind == "fixed"
            else (batch_size, slot.shape[0], 0, *slot.shape[1:]),
            dtype=slot.dtype,
            device=device,
        )
        for name, slot in slots.items()
    }
    if "keys" in empty:
        layer.lazy_initialization(empty["keys"], empty["values"])
    for name, tensor in empty.items():
        what, _, index = name.partition(".")
        if index:
            layer.lazy_initialization(**{what: tensor, "state_idx": int(index)})


def layer_state(layer: Any) -> LayerState:
    """Return the allocated tensors of a layer as a state; they stay those of the cache."""
    tensors, layout = dict(_named_tensors(layer)), {}
    for name, slot in slots_of(layer).items():
        window = (
            layer.max_cache_len if slot.kind == "per_token" and getattr(layer, "is_sliding", False) else 0
        )
        layout[name] = StateTensor(name, slot.shape, slot.kind, window)
    return LayerState(tensors, layout)
