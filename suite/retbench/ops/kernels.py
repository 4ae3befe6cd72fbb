"""Retention by the Triton kernels of flash-linear-attention: a form on CUDA with the signature of the others.

`chunk_simple_gla` is the chunkwise form with a fixed or data-dependent decay per head; RetNet's is fixed. It multiplies
in the inputs' dtype and accumulates in float32. Between chunks the state stays in float32 and is rounded for the
read-out only. The tests and the equivalence check compare it with the forms in `retention`.

Source: fla-org/flash-linear-attention, `fla/ops/simple_gla/chunk.py`; its `fla/ops/retention/chunk.py` calls the same.
"""

import importlib
import importlib.util
import inspect
from functools import cache

import torch
from torch import Tensor

from retbench.ops import FLA_CHUNK_SIZE
from retbench.ops.linear_operator import check_shapes

_OPS = "fla.ops.simple_gla"
_FLOAT32_REASON = (
    "flash-linear-attention's kernels multiply float32 in TensorFloat-32, which is less precise than other forms; "
    "use --dtype bfloat16, or backend 'chunkwise'"
)


def retention_fla(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute retention in chunks of 64 tokens with `chunk_simple_gla`.

    Arguments, returns and errors as of `retention_recurrent`; requires that `missing_reason` returns None.
    """
    check_shapes(q, k, v, log_decay, state)
    if log_decay.dim() == 4 or q.shape[2] != v.shape[2]:
        raise ValueError(
            "chunk_simple_gla takes one decay per head and as many heads of q as of v, got log_decay "
            f"{tuple(log_decay.shape)}, q {tuple(q.shape)}, v {tuple(v.shape)}; use backend 'chunkwise'"
        )
    chunk_simple_gla = importlib.import_module(_OPS).chunk_simple_gla
    decay = log_decay.float()
    fixed = log_decay.dim() == 1
    out, state = chunk_simple_gla(
        q=q,
        k=k,
        v=v,
        g=None if fixed else decay,
        g_gamma=decay if fixed else None,
        scale=1.0,  # the keys are scaled already
        initial_state=state,
        output_final_state=True,
    )
    assert state is not None
    return out, state


def missing_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why these kernels cannot run on this device at this dtype, and what to do; None if they can."""
    if device.type != "cuda":
        return "flash-linear-attention's kernels run on CUDA devices only; use backend 'chunkwise'"
    if dtype == torch.float32:
        return _FLOAT32_REASON
    if dtype not in (torch.bfloat16, torch.float16):
        given = str(dtype).removeprefix("torch.")
        return f"flash-linear-attention takes bfloat16 and float16, not {given}; use --dtype bfloat16"
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed: pip install 'retbench[kernels]'"
    return _import_problem() or _launch_problem(device, dtype)


def _import_problem() -> str | None:
    """Return why the installed package cannot be used: it is too old or cannot be imported."""
    try:
        found = importlib.import_module(_OPS).chunk_simple_gla
    except Exception as error:  # anything that the package or Triton may raise
        what = " ".join(str(error).split())
        return f"flash-linear-attention cannot be imported ({type(error).__name__}: {what}); install it anew"
    if "g_gamma" not in inspect.signature(found).parameters:
        return "flash-linear-attention is older than 0.3: pip install --upgrade 'retbench[kernels]'"
    return None


@cache
def _launch_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why installed kernels cannot be launched here: Triton compiles them at their first launch."""
    try:
        x = torch.zeros(1, FLA_CHUNK_SIZE, 1, 64, dtype=dtype, device=device)  # (B, T, H, K)
        retention_fla(x, x, x, torch.zeros(1, device=device))
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise  # not a fault of the kernels
    except Exception as error:  # raised by Triton, its C compiler or the driver
        what = " ".join(str(error).split())
        return (
            f"flash-linear-attention's kernels cannot be launched ({type(error).__name__}: {what}); Triton needs a C "
            "compiler (gcc, or the one that CC names) and a supported GPU; use backend 'chunkwise'"
        )
    return None
