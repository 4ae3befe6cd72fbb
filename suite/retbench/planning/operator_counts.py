"""Counts of the operators that decode steps execute: facts behind a predicted time that need no measurement."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from retbench.architectures.configs import ModelConfig
from retbench.models.build import allocate_model
from retbench.ops import DecodeOperators
from retbench.planning.prediction import OperatorCount

_CALLS_WITHOUT_KERNEL = """
_unsafe_view alias as_strided chunk detach empty expand expand_as flatten narrow permute promote_types reshape select
slice split split_with_sizes squeeze t transpose unbind unflatten unsqueeze view view_as
"""
_WITHOUT_KERNEL = frozenset(_CALLS_WITHOUT_KERNEL.split())
_PRODUCTS = frozenset(["addmm", "baddbmm", "bmm", "linear", "matmul", "mm", "mv"])
_ATTENTIONS = frozenset(["scaled_dot_product_attention", "softmax"])
"""Operators of which there is one per attention: of all of it, or between its products."""


class CountedOperators(TorchDispatchMode):
    """Counts the operators that execute; conversions to the dtype that a tensor has are views.

    Attributes:
        found: The counts so far.
    """

    found: OperatorCount

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = OperatorCount(0, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count an operator and run it."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_view = name in _WITHOUT_KERNEL or bool(args and out is args[0] and not name.endswith("_"))
        is_attention = name in _ATTENTIONS
        shares_keys = is_attention and args[0].shape[-2] > 1  # queries or scores of one position, in rows
        before = self.found
        self.found = OperatorCount(
            total=before.total + (not is_view),
            products=before.products + (name in _PRODUCTS),
            attentions=before.attentions + (is_attention and not shares_keys),
            shared_attentions=before.shared_attentions + shares_keys,
            views=before.views + is_view,
        )
        return out


@torch.inference_mode()
def count_operators(
    config: ModelConfig, dtype: torch.dtype, *, backend: str, decode_operators: DecodeOperators = "eager"
) -> OperatorCount:
    """Count the operators of a decode step of a model, whose weights need no memory."""
    model = allocate_model(
        config, dtype=dtype, device="meta", backend=backend, decode_operators=decode_operators
    )
    state, token = model.init_state(1, 4), torch.zeros(1, 1, dtype=torch.int64, device="meta")
    model(token, state)  # records what executes, and makes tables
    return count_call(lambda: model(token, state))


def count_call(call: Callable[[], object]) -> OperatorCount:
    """Return the operators of a call."""
    with CountedOperators() as counted:
        call()
    found: OperatorCount = counted.found
    return found
