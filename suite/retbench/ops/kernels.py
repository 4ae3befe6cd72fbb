"""Linear recurrences by the Triton kernels of flash-linear-attention: forms on CUDA with the signature of the others.

`chunk_simple_gla` is the chunkwise form with a fixed or data-dependent decay per head; RetNet's is fixed. `chunk_gla`
is that form with a decay per channel. Both multiply in the inputs' dtype and accumulate in float32. Between chunks the
state stays in float32 and is rounded for the read-out only. `fused_recurrent_gla` is the recurrent form with a decay
per channel, and computes in float32. The tests and the equivalence check compare them with the forms in
`linear_operator`.

Source: fla-org/flash-linear-attention, `fla/ops/simple_gla/chunk.py` (its `fla/ops/retention/chunk.py` calls the same)
and `fla/ops/gla/{chunk,fused_recurrent}.py`.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from importlib.metadata import distributions

import torch
from packaging.version import Version
from torch import Tensor

from retbench.ops import FLA_CHUNK_SIZE, GPU_SHORTAGE
from retbench.ops.linear_operator import LinearForm, check_shapes

_OPS = "fla.ops.simple_gla"
_CHANNEL_OPS = "fla.ops.gla"
_DISTRIBUTIONS = ("fla-core", "flash-linear-attention")
"""Packages that install the operators; older versions of the second brought their own."""
_OLDEST = "0.6"
"""The oldest version of the extra `kernels` in pyproject.toml: older kernels were tuned once for all widths."""
TRITON_CURE = (
    "Triton needs a C compiler (gcc, or the one that CC names), Python's headers (package python3-dev) and a supported "
    "GPU"
)
_FLOAT32_REASON = (
    "flash-linear-attention's kernels multiply float32 in TensorFloat-32, which is less precise than other forms; "
    "use --dtype bfloat16, or backend 'chunkwise'"
)


def retention_fla(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute retention in chunks of 64 tokens with `chunk_simple_gla`.

    Arguments, returns and errors as of `linear_recurrent`; requires that `missing_reason` returns None.
    """
    check_shapes(q, k, v, log_decay, state)
    if log_decay is None or log_decay.dim() == 4 or q.shape[2] != v.shape[2]:
        found = None if log_decay is None else tuple(log_decay.shape)
        raise ValueError(
            "chunk_simple_gla takes one decay per head and as many heads of q as of v, got log_decay "
            f"{found}, q {tuple(q.shape)}, v {tuple(v.shape)}; use backend 'chunkwise'"
        )
    decay = {"g_gamma" if log_decay.dim() == 1 else "g": log_decay.float()}
    return _call(f"{_OPS}.chunk_simple_gla", q=q, k=k, v=v, **decay, initial_state=state)


def gla_fla(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the recurrence with a decay per channel in chunks of 64 tokens with `chunk_gla`.

    Arguments, returns and errors as of `linear_recurrent`; requires that `missing_reason` returns None.
    """
    decay = _channel_decay(q, k, v, log_decay, state)
    return _call(f"{_CHANNEL_OPS}.chunk_gla", q=q, k=k, v=v, g=decay, initial_state=state)


def gla_fla_recurrent(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the recurrence with a decay per channel token by token with `fused_recurrent_gla`.

    Arguments, returns and errors as of `linear_recurrent`; requires that `missing_reason` returns None.
    """
    decay = _channel_decay(q, k, v, log_decay, state)
    return _call(f"{_CHANNEL_OPS}.fused_recurrent_gla", q=q, k=k, v=v, gk=decay, initial_state=state)


def _channel_decay(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None) -> Tensor:
    """Return the logarithm of a decay per channel in float32; ValueError for shapes that the kernels do not take."""
    check_shapes(q, k, v, log_decay, state)
    if log_decay is None or log_decay.dim() != 4 or q.shape[2] != v.shape[2]:
        found = None if log_decay is None else tuple(log_decay.shape)
        raise ValueError(
            "chunk_gla and fused_recurrent_gla take one decay per channel and as many heads of q as of v, got "
            f"log_decay {found}, q {tuple(q.shape)}, v {tuple(v.shape)}; use backend 'chunkwise'"
        )
    return log_decay.float()


def _call(name: str, **arguments: Tensor | None) -> tuple[Tensor, Tensor]:
    """Call an operator of fla by its full name; return outputs and the final state."""
    module, _, operator = name.rpartition(".")
    call = getattr(importlib.import_module(module), operator)
    # Queries or keys are scaled already.
    out, state = call(**arguments, scale=1.0, output_final_state=True)
    assert state is not None
    return out, state


def missing_reason(device: torch.device, dtype: torch.dtype, form: LinearForm = retention_fla) -> str | None:
    """Return why the kernels of a form cannot run on this device at this dtype, and what to do; None if they can."""
    if device.type != "cuda":
        return "flash-linear-attention's kernels run on CUDA devices only; use backend 'chunkwise'"
    if dtype == torch.float32 and form is not gla_fla_recurrent:
        return _FLOAT32_REASON
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        given = str(dtype).removeprefix("torch.")
        return f"flash-linear-attention takes bfloat16 and float16, not {given}; use --dtype bfloat16"
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed: pip install 'retbench[kernels]'"
    return _import_problem() or _launch_problem(device, dtype, form)


def _import_problem() -> str | None:
    """Return why the installed package cannot be used: it is too old or cannot be imported."""
    found = (one.version for name in _DISTRIBUTIONS for one in distributions(name=name))
    version = next(found, None)
    if version is None or Version(version) < Version(_OLDEST):
        return (
            f"flash-linear-attention {_OLDEST} or newer is needed, whose kernels are tuned for each width, and the "
            f"installed version is {version or 'unknown'}: pip install --upgrade 'retbench[kernels]'"
        )
    try:
        importlib.import_module(_OPS)
    except Exception as error:  # anything that the package or Triton may raise
        what = " ".join(str(error).split())
        return f"flash-linear-attention cannot be imported ({type(error).__name__}: {what}); install it anew"
    return None


@cache
def _launch_problem(device: torch.device, dtype: torch.dtype, form: LinearForm) -> str | None:
    """Return why installed kernels cannot be launched here: Triton compiles them at their first launch."""

    def launch() -> None:
        x = torch.zeros(1, FLA_CHUNK_SIZE, 1, 64, dtype=dtype, device=device)  # (B, T, H, K)
        form(x, x, x, torch.zeros(1, device=device) if form is retention_fla else x, None)

    return launch_problem(
        launch,
        device,
        "flash-linear-attention's kernels",
        f"{TRITON_CURE}; use backend 'chunkwise'",
    )


def launch_problem(launch: Callable[[], object], device: torch.device, kernels: str, cure: str) -> str | None:
    """Launch kernels once, and return why they cannot be imported or launched, and what to do; None if they can.

    Args:
        launch: Launches them.
        device: A CUDA device.
        kernels: Their name in the reason.
        cure: Advice, with what to use instead.

    Raises:
        RuntimeError: the device's memory ran out, which is no fault of the kernels (only torch's allocator raises a
            torch.OutOfMemoryError; CUDA and Triton raise others), or this process can no longer use the device.
    """
    try:
        launch()
        torch.cuda.synchronize(device)
    except Exception as error:  # raised by the package, by Triton, its C compiler or the driver
        if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in GPU_SHORTAGE):
            raise
        # An error such as that of a wrong address stays: no kernel can run from here on.
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            raise error from None
        what = " ".join(str(error).split())
        return f"{kernels} cannot be launched ({type(error).__name__}: {what}); {cure}"
    return None
