"""The linear operator of RWKV by the Triton kernels of flash-linear-attention, on CUDA devices.

`chunk_rwkv6` is the chunkwise form: it multiplies in the inputs' dtype and accumulates in float32, and its secondary
chunks refer to the exclusive sum of the decays before their first query, so that no exponent is above zero.
`fused_recurrent_rwkv6` is the recurrent form, and computes in float32.

Source: fla-org/flash-linear-attention, `fla/ops/rwkv6/{chunk,fused_recurrent}.py`.
"""

import importlib
import warnings
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from retbench.ops import FLA_CHUNK_SIZE, kernels
from retbench.ops.linear_operator import Readout, check_shapes

_OPS = "fla.ops.rwkv6"


def _run(
    operator: str,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    *,
    readout: Readout,
) -> tuple[Tensor, Tensor]:
    """Compute the operator by a function of fla; requires that `missing_reason` returns None.

    Arguments, returns and errors as of `ops.linear_operator.linear_recurrent`, with a decay and a bonus per channel and
    as many heads of r as of v.
    """
    check_shapes(r, k, v, log_decay, state, readout)
    assert readout.bonus is not None
    call = getattr(importlib.import_module(_OPS), operator)
    with warnings.catch_warnings():  # fla takes fewer tokens than heads for a mistaken order of axes
        warnings.filterwarnings("ignore", message="Input tensor shape suggests potential format mismatch")
        out, after = call(
            r=r,
            k=k,
            v=v,
            w=log_decay.float(),
            u=readout.bonus,
            scale=1.0,
            initial_state=state,
            output_final_state=True,
        )
    return out, after


KERNELS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "fla": partial(_run, "chunk_rwkv6"),
    "fla_recurrent": partial(_run, "fused_recurrent_rwkv6"),
}
"""Forms that are kernels."""


def missing_reason(form: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a form of `KERNELS` cannot run on this device at this dtype, and what to do; None if it can."""
    # The recurrent kernel computes in float32, in which the chunkwise ones are not precise.
    is_exact = form == "fla_recurrent" and dtype == torch.float32
    reason = kernels.missing_reason(device, torch.bfloat16 if is_exact else dtype)
    return reason or _launch_problem(form, device, dtype)


@cache
def _launch_problem(form: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the installed kernels cannot be imported or launched; Triton compiles them at their first launch."""

    def launch() -> None:
        x = torch.zeros(1, FLA_CHUNK_SIZE, 1, 64, dtype=dtype, device=device)  # (B, T, H, K)
        KERNELS[form](x, x, x, x, None, readout=Readout(x[0, 0]))

    return kernels.launch_problem(
        launch,
        device,
        "flash-linear-attention's kernels of RWKV-6",
        f"{kernels.TRITON_CURE}; use backend 'chunkwise'",
    )
