"""Kernels of other projects that compute the operator of Mamba-2 on CUDA devices.

mamba-ssm's chunk scan takes B and C per group, and dt beside the decay. flash-linear-attention's `chunk_simple_gla`
takes one head of queries and keys per head of values. Both multiply in the inputs' dtype and accumulate in float32.

Source: state-spaces/mamba, `mamba_ssm/ops/triton/ssd_combined.py`, and `mamba_ssm/modules/mamba2.py`, which calls it.
"""

import importlib
import importlib.util
from functools import cache

import torch
from torch import Tensor

from retbench.mixers.mamba2.config import MAMBA_CHUNK_SIZE
from retbench.ops.kernels import launch_problem, retention_fla
from retbench.ops.linear_chunk import repeat_heads

_MODULE = "mamba_ssm.ops.triton.ssd_combined"


def scan_fla(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the operator by `chunk_simple_gla`, with a copy of the queries and keys for each head of values.

    Arguments, returns and errors as of `ops.linear_operator.linear_recurrent`.
    """
    assert log_decay is not None
    heads = v.shape[2]
    return retention_fla(repeat_heads(q, heads, dim=2), repeat_heads(k, heads, dim=2), v, log_decay, state)


def scan_mamba_ssm(
    c: Tensor, b: Tensor, x: Tensor, dt: Tensor, rate: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the operator by `mamba_chunk_scan_combined`; requires that `missing_reason` returns None.

    Args:
        c: Queries, (B, T, G, N).
        b: Keys, (B, T, G, N).
        x: Values before they are multiplied by dt, (B, T, H, P).
        dt: Time steps after softplus, (B, T, H) float32.
        rate: Decay rates, (H,) float32, at most 0: the logarithm of a decay is dt * rate.
        state: (B, H, N, P) float32; None is zero.

    Returns:
        out: (B, T, H, P) in the dtype of x.
        state: After the last token, (B, H, N, P) float32.
    """
    out, last = importlib.import_module(_MODULE).mamba_chunk_scan_combined(
        x,
        dt,
        rate,
        b,
        c,
        chunk_size=MAMBA_CHUNK_SIZE,
        initial_states=None if state is None else state.mT.contiguous(),  # theirs is (B, H, P, N)
        return_final_states=True,
    )
    return out, last.mT.float()


def missing_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why mamba-ssm's kernels cannot run on this device at this dtype, and what to do; None if they can."""
    if device.type != "cuda":
        return "mamba-ssm's kernels run on CUDA devices only; use backend 'chunkwise'"
    if dtype not in (torch.bfloat16, torch.float16):
        given = str(dtype).removeprefix("torch.")
        return (
            f"mamba-ssm's kernels multiply in 16-bit dtypes or in TensorFloat-32, which is less precise than {given}; "
            "use --dtype bfloat16, or backend 'chunkwise'"
        )
    if importlib.util.find_spec("mamba_ssm") is None:
        return "mamba-ssm is not installed: pip install --no-build-isolation 'retbench[mamba]'"
    return _launch_problem(device, dtype)


@cache
def _launch_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the installed kernels cannot be imported or launched; Triton compiles them at their first launch."""

    def launch() -> None:
        x = torch.zeros(1, MAMBA_CHUNK_SIZE, 1, 64, dtype=dtype, device=device)  # (B, T, H, P)
        dt, rate = torch.zeros(1, MAMBA_CHUNK_SIZE, 1, device=device), torch.zeros(1, device=device)
        scan_mamba_ssm(x, x, x, dt, rate, None)

    return launch_problem(
        launch,
        device,
        "mamba-ssm's kernels",
        "install mamba-ssm 2.2 or newer for this version of torch, with a C compiler for Triton; or use backend "
        "'chunkwise'",
    )
