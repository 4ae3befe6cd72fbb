"""Dtypes: what is computed in a wider one than a model's, and constants that must not be rounded to a narrow one.

On a CPU without instructions for a 16-bit dtype, matrices of it are multiplied in float32, in which products of 16-bit
factors are exact. torch's own products take many times as long there: 64 rows by a weight (2048, 512) in bfloat16 took
7.5 ms on two cores of an AMD EPYC without AVX-512, 254 ms where the weight was stored by input, and 1.4 ms in float32.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of states, decays and sums: the wider of float32 and `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in a dtype; without a call of torch where it has that, which would take as long as a small sum."""
    return x if x.dtype == dtype else x.to(dtype)


def _narrow_products() -> frozenset[torch.dtype]:
    """Return the 16-bit dtypes of which oneDNN multiplies matrices on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, is_supported in supported.items() if is_supported)


NARROW_PRODUCTS = _narrow_products()
"""16-bit dtypes whose matrices this CPU multiplies as they are."""


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Return whether this CPU multiplies matrices of a dtype as they are."""
    return dtype.itemsize != 2 or dtype in NARROW_PRODUCTS


def _factor_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a product on a CPU takes x as a factor: its own, or that of autocast."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled("cpu"):
        return x.dtype
    return torch.get_autocast_dtype("cpu")


def widens(x: Tensor) -> bool:
    """Return whether matrices like x are multiplied in float32, because the CPU has no products of their dtype."""
    return x.device.type == "cpu" and not cpu_multiplies(_factor_dtype(x))


def in_float32(product: Callable[..., Tensor], *factors: Tensor) -> Tensor:
    """Return a product of factors that `widens` is true of: computed in float32, and rounded to their dtype."""
    dtype = _factor_dtype(factors[0])
    with torch.autocast("cpu", enabled=False):
        return product(*(factor.to(dtype).float() for factor in factors)).to(dtype)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in their dtype; see `widens`."""
    batched = a.dim() == b.dim() == 3 and a.shape[0] == b.shape[0]
    product: Callable[..., Tensor] = torch.bmm if batched else torch.matmul  # which takes longer to call
    return in_float32(product, a, b) if widens(a) else product(a, b)


class Float64Constant(nn.Module):
    """A tensor that follows its module to any device and stays float64 when the module is cast.

    A buffer would be cast: in bfloat16 the slowest decay rounds to 1, and positions above 256 are no longer distinct.
    The tensor is recomputed after each move, so it is valid even if the module was allocated without values.

    Args:
        make: Returns the tensor.
    """

    value: Tensor

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self._make = make
        with torch.device("cpu"):  # the same values wherever the module is built
            value = make().double()
        self.register_buffer("value", value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the module's device, not its dtype."""
        moved: Tensor = fn(self.value)
        self.value = self._make().to(device=moved.device, dtype=torch.float64)
        return self


class WideConstant(Float64Constant):
    """A constant rounded once to the wide dtype of its module, so that decode steps need not round it."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__(make)
        self.value = self.value.to(wide_dtype(torch.get_default_dtype()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the module's device, and its dtype if that is wide."""
        moved: Tensor = fn(self.value)
        self.value = self._make().to(device=moved.device, dtype=wide_dtype(moved.dtype))
        return self
