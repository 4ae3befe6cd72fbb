"""RMSNorm, with a backward pass of few operators where torch has many."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Divide x (..., width) by its root mean square, and multiply by a weight (width,); computed in float32 or wider.

    torch's operator, but on a CPU with gradients: there torch differentiates some ten operators, in 16-bit dtypes each
    with a conversion, and takes 1.3 to 2.7 times as long.
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    # It is untyped in some versions of torch.
    apply: Callable[[Tensor, Tensor | None, float], Tensor] = _RmsNorm.apply
    return apply(x, weight, eps)


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
