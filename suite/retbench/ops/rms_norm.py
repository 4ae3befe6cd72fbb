"""RMSNorm of few operators where torch has many: in its backward pass, and of a single row on a CPU."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDE = torch.float32, torch.float64


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Divide x (..., width) by its root mean square, and multiply by a weight (width,); computed in float32 or wider.

    torch's operator, but on a CPU with gradients or for a single row. With gradients torch differentiates some ten
    operators, in 16-bit dtypes each with a conversion, and takes 1.3 to 2.7 times as long. For a row it calls six,
    whose calls take most of the time. With two and a number of Python, a norm of 512 to 4,096 values took 0.4 of the
    time, on an AMD EPYC.
    """
    if x.is_cpu and not torch.compiler.is_compiling():
        if torch.is_grad_enabled():
            # It is untyped in some versions of torch.
            apply: Callable[[Tensor, Tensor | None, float], Tensor] = _RmsNorm.apply
            return apply(x, weight, eps)
        if _is_wide_row(x):
            return _norm_row(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _is_wide_row(x: Tensor) -> bool:
    """Return whether x is one row (..., 1, width) in float32 or float64 that autocast leaves as it is, and no fake."""
    return (
        x.numel() == x.shape[-1]
        and x.dim() > 1
        and x.dtype in _WIDE
        and type(x) is Tensor
        and not torch.is_autocast_enabled("cpu")
    )


def _norm_row(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Compute the norm of one row, with its factor as a number of Python, so that one call multiplies all three."""
    row = x.view(-1)
    mean_square = torch.dot(row, row).item() / row.shape[0] + eps
    factor = mean_square**-0.5 if mean_square else math.inf
    return x * factor if weight is None else torch.addcmul(_zero(x.dtype), x, weight, value=factor)


@cache
def _zero(dtype: torch.dtype) -> Tensor:
    """Return zero as a tensor without axes."""
    with torch.inference_mode(False):  # cached, so usable in every mode
        return torch.zeros((), dtype=dtype, device="cpu")


class _RmsNorm(torch.autograd.Function):
    """RMSNorm that keeps its input and the factor of each row for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """Compute the norm, rounded once to the dtype of x."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            factor = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
            ctx.save_for_backward(x, weight, factor)
            out: Tensor = wide * factor
            if weight is not None:
                out = out.mul_(weight)
        return out.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """With n = x factor and g the gradient of n: that of x is factor (g - n mean(g n))."""
        x, weight, factor = ctx.saved_tensors
        normed, grad = x.to(factor.dtype) * factor, grad.to(factor.dtype)
        of_weight: Tensor | None = None
        if weight is not None:
            of_weight = (grad * normed).view(-1, x.shape[-1]).sum(0).to(weight.dtype)
            grad = grad * weight
        mean = torch.linalg.vecdot(grad, normed).div_(x.shape[-1]).unsqueeze(-1)
        of_x = torch.addcmul(grad, normed, mean, value=-1).mul_(factor)
        return of_x.to(x.dtype), of_weight, None
