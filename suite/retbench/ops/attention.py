"""Causal softmax attention by named backends. The requested backend runs, or an error states why it cannot.

`auto` stands for `sdpa`, or for `products` where a single query of many keys was found faster by it on a CPU; see
`chosen_backend`.

Every backend takes queries (B, H, T, K) of the last T positions and keys and values (B, Hkv, S, K) of all S >= T
positions, and returns (B, H, T, K). Query t attends to keys 0 .. S - T + t. With Hkv < H, each key head serves
H / Hkv neighbouring query heads (grouped-query attention, arXiv:2305.13245).
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from retbench.ops.attention_products import (
    compiled_products_are_faster,
    join_groups,
    multiply_cache,
    multiply_compiled,
)
from retbench.ops.linear import FewestKeys
from retbench.ops.precision import in_float32, matmul, wide_dtype, widens
from retbench.ops.registration import operator, shapes_of

AttentionBackend = Callable[[Tensor, Tensor, Tensor], Tensor]

# Set for every process that runs a model. On Hopper torch may prefer cuDNN, but never for a mask aligned to the last
# key. One prompt would then use two kernels, and cuDNN would build a plan for each length of the cache.
torch.backends.cuda.enable_cudnn_sdp(False)


def attend_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention by its definition: all scores, a mask, and a softmax in float32 or wider."""
    k, v = repeat_keys(q, k), repeat_keys(q, v)
    length, keys = q.shape[2], k.shape[2]
    scores = matmul(q, k.mT) * q.shape[-1] ** -0.5  # (B, H, T, S)
    later = torch.ones(length, keys, dtype=torch.bool, device=q.device).triu(keys - length + 1)
    scores = scores.to(wide_dtype(q.dtype)).masked_fill(later, -torch.inf)
    return matmul(scores.softmax(dim=-1).to(q.dtype), v)


@dataclass(frozen=True)
class _FlashVersion:
    """A version of FlashAttention that torch can run in place of the version 2 that it contains.

    Attributes:
        name: torch's name of it.
        module: The module that has its kernels.
        capabilities: Major compute capabilities of GPUs that it runs on.
    """

    name: str
    module: str
    capabilities: tuple[int, ...]


_FLASH_VERSIONS = {
    "flash3": _FlashVersion("FA3", "flash_attn_interface", (9,)),
    "flash4": _FlashVersion("FA4", "flash_attn.cute.interface", (9, 10)),
}
"""Versions by backend, as torch.nn.attention's `_fa3` and `_fa4` check them (torch 2.13)."""

_active_flash: str | None = None
"""Backend in `_FLASH_VERSIONS` that torch's flash kernel is replaced with in this process."""


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run torch's scaled_dot_product_attention, with the kernel that torch chooses; `sdpa_kernel` returns its name."""
    if _active_flash is not None:
        _replace_flash(None)
    return _call_sdpa(q, k, v)


def attend_flash_version(q: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
    """Run torch's flash kernel in the version of `backend`, and no other kernel.

    Raises:
        RuntimeError: the kernel does not take these inputs.
    """
    if _active_flash != backend:
        _replace_flash(backend)
    with nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _call_sdpa(q, k, v)


def _replace_flash(backend: str | None) -> None:
    """Have torch's flash kernel be that of a version from now on, or torch's own when None."""
    global _active_flash
    if _active_flash is not None:
        # torch does so too before it activates another version, which may then turn out to be missing.
        nn.attention.restore_flash_attention_impl()
        _active_flash = None
    if backend is not None:
        nn.attention.activate_flash_attention_impl(_FLASH_VERSIONS[backend].name)
        _active_flash = backend


def _call_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Call scaled_dot_product_attention with a causal mask aligned to the last key."""
    length, keys = q.shape[2], k.shape[2]
    grouped = k.shape[1] != q.shape[1]
    if length == 1:
        if not grouped:  # two views take as long as the fused kernel takes with few keys
            return attend_fused(q, k, v)
        return attend_fused(join_groups(q, k), k, v).reshape(*q.shape[:3], v.shape[-1])
    if length == keys:
        return attend_fused(q, k, v, is_causal=True, enable_gqa=grouped)
    if q.device.type == "cpu":  # what the next mask turns into there
        mask = torch.ones(length, keys, dtype=torch.bool, device=q.device).tril(keys - length)
    else:
        from torch.nn.attention.bias import causal_lower_right  # loads torch's compiler, which takes seconds

        mask = causal_lower_right(length, keys)
    return attend_fused(q, k, v, attn_mask=mask, enable_gqa=grouped)


def attend_fused(q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
    """Call torch's scaled_dot_product_attention, in float32 where a CPU has no products of the dtype."""
    if not widens(q):
        return F.scaled_dot_product_attention(q, k, v, **arguments)
    return in_float32(partial(F.scaled_dot_product_attention, **arguments), q, k, v)


def attend_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run the flash-attn package, on CUDA in 16-bit dtypes. Its causal mask is aligned to the last key (since 2.1).

    For a single query `flash_attn_with_kvcache` splits the keys. It has no gradient, and takes a cache in any layout
    whose heads are contiguous.
    """
    from flash_attn import flash_attn_func, flash_attn_with_kvcache

    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, T or S, H, K)
    if q.shape[1] == 1 and not torch.is_grad_enabled():
        out: Tensor = flash_attn_with_kvcache(q, k, v, causal=True)
    else:
        out = flash_attn_func(q, k, v, causal=True)
    return out.transpose(1, 2)


def attend_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from one query by two matrix products and a softmax in float32 or wider; else run `attend_sdpa`."""
    return attend_sdpa(q, k, v) if q.shape[2] > 1 else _attend_single(q, k, v, 0)


def attend(name: str, q: Tensor, k: Tensor, v: Tensor, products_from: FewestKeys) -> Tensor:
    """Attend by a backend in `BACKENDS`, or for auto by the one that `chosen_backend` names."""
    if name != "auto":
        return BACKENDS[name](q, k, v)
    fewest = _fewest_keys(q, k, products_from)
    return attend_sdpa(q, k, v) if fewest is None else _attend_single(q, k, v, fewest)


def chosen_backend(name: str, q: Tensor, k: Tensor, products_from: FewestKeys) -> str:
    """Return the backend that a requested one stands for with these queries and keys: another only for `auto`.

    Args:
        name: A name in `BACKENDS`, or auto.
        q: Queries, (B, H, T, K).
        k: Keys, (B, Hkv, S, K).
        products_from: Fewest keys from which a single query attends by `products`.
    """
    if name != "auto":
        return name
    fewest = _fewest_keys(q, k, products_from)
    return "sdpa" if fewest is None or k.shape[2] < fewest else "products"


def _fewest_keys(q: Tensor, k: Tensor, products_from: FewestKeys) -> int | None:
    """Return from how many keys on these queries attend by products; None for several positions."""
    if q.shape[2] > 1:
        return None
    if widens(q):
        # Products hold keys or values once more in float32, torch's fused attention would hold both.
        return 0
    return products_from.alone if q.shape[1] == k.shape[1] else products_from.shared


def _attend_single(q: Tensor, k: Tensor, v: Tensor, products_from: int) -> Tensor:
    """Attend from one query by products from so many keys on, else by `attend_sdpa`."""
    if not torch.compiler.is_compiling() or torch.is_grad_enabled() or widens(q):
        return _choose_and_attend(q, k, v, products_from)
    if products_from == 0 and compiled_products_are_faster(q.device, q.dtype):
        return multiply_compiled(q, k, v)
    # As one operator compiled code serves every number of keys.
    out: Tensor = attend_single(q, k, v, products_from)
    return out


def _choose_and_attend(q: Tensor, k: Tensor, v: Tensor, products_from: int) -> Tensor:
    return (multiply_cache if k.shape[2] >= products_from else attend_sdpa)(q, k, v)


@operator()
def attend_single(q: Tensor, k: Tensor, v: Tensor, products_from: int) -> Tensor:
    """Attend from one query as one operator; see `_attend_single`."""
    return _choose_and_attend(q, k, v, products_from)


@shapes_of("attend_single")
def _(q: Tensor, k: Tensor, v: Tensor, products_from: int) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])


BACKENDS: dict[str, AttentionBackend] = {
    "reference": attend_reference,
    "sdpa": attend_sdpa,
    "products": attend_products,
    "flash": attend_flash,
    **{name: partial(attend_flash_version, backend=name) for name in _FLASH_VERSIONS},
}


def executed_kernel(name: str, q: Tensor, k: Tensor, v: Tensor) -> str:
    """Return the kernel that backend `name` executes for these inputs: reference, or sdpa:flash if torch chooses it."""
    if name == "sdpa" or (name == "products" and q.shape[2] > 1):
        return f"sdpa:{sdpa_kernel(q, k, v)}"
    return name


def sdpa_kernel(q: Tensor, k: Tensor, v: Tensor) -> str:
    """Return the name of the kernel that torch runs for these inputs in `attend_sdpa`: math, flash or efficient.

    The answer is that of torch's own dispatcher. For a mask aligned to the last key the order is that of torch's
    `CausalBias`: flash, efficient, else a kernel that takes the mask as a tensor, as it always is on a CPU.
    """
    length, keys = q.shape[2], k.shape[2]
    if length == 1:
        q = join_groups(q, k)
    mask = None
    if length > 1 and length != keys:
        if q.device.type == "cuda":
            params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, k.shape[1] != q.shape[1])
            if torch.backends.cuda.can_use_flash_attention(params):
                return "flash"
            if torch.backends.cuda.can_use_efficient_attention(params):
                return "efficient"
        mask = torch.ones(length, keys, dtype=torch.bool, device=q.device).tril(keys - length)
    return _chosen_kernel(q, k, v, mask, causal=mask is None and length > 1)


def _chosen_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> str:
    """Return the name of the kernel that torch's dispatcher chooses under a mask that is a tensor, or without one."""
    choice = torch._fused_sdp_choice(q, k, v, mask, 0.0, causal, enable_gqa=k.shape[1] != q.shape[1])
    names = {kernel.value: name for name, kernel in SDPBackend.__members__.items()}
    return names[choice].lower().removesuffix("_attention")


def masked_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[str, bool]:
    """Return the kernel that torch runs under a mask, (T, S) bool, and whether shared keys have to be repeated for it.

    Torch's efficient kernel takes a mask, but no shared keys; its flash kernel on CUDA takes shared keys, but no mask.
    So both may leave grouped queries to `math`, which holds every score.
    """
    kernel = _chosen_kernel(q, k, v, mask, causal=False)
    if kernel == "math" and k.shape[1] != q.shape[1]:
        repeated = _chosen_kernel(q, repeat_keys(q, k), repeat_keys(q, v), mask, causal=False)
        if repeated != "math":
            return repeated, True
    return kernel, False


def repeat_keys(q: Tensor, k: Tensor) -> Tensor:
    """Return keys or values (B, Hkv, S, K) with a copy for each query head of q (B, H, T, K): (B, H, S, K)."""
    groups = q.shape[1] // k.shape[1]
    # repeat_interleave copies also where nothing repeats, which would read and write a cache once more.
    return k.repeat_interleave(groups, dim=1) if groups > 1 else k


def missing_reason(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why backend `name` cannot run on this device at this dtype, and what to do; None if it can."""
    if name != "flash" and name not in _FLASH_VERSIONS:
        return None
    if device.type != "cuda":
        return "flash-attn runs on CUDA devices only; use backend 'sdpa'"
    if dtype not in (torch.bfloat16, torch.float16):
        given = str(dtype).removeprefix("torch.")
        return f"flash-attn takes bfloat16 and float16, not {given}; use --dtype bfloat16"
    if name in _FLASH_VERSIONS:
        return _version_problem(name, device)
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed: pip install 'retbench[flash]' --no-build-isolation"
    return _flash_problem(device)


def _flash_problem(device: torch.device) -> str | None:
    """Return why the installed flash-attn cannot run on this device: an old GPU, or a build for another torch."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return (
            f"flash-attn needs compute capability 8.0, and this GPU has {major}.{minor}; use backend 'sdpa'"
        )
    try:
        importlib.import_module("flash_attn")
    except Exception as error:  # an undefined symbol is an ImportError, but there are others
        what = " ".join(str(error).split())
        return f"flash-attn cannot be imported ({type(error).__name__}: {what}); build it anew for this torch"
    return None


def _version_problem(name: str, device: torch.device) -> str | None:
    """Return why torch cannot run a version of FlashAttention on this device; None if it can."""
    version = _FLASH_VERSIONS[name]
    major, minor = torch.cuda.get_device_capability(device)
    if major not in version.capabilities:
        needed = " or ".join(f"{capability}.x" for capability in version.capabilities)
        return f"{version.name} needs compute capability {needed}, and this GPU has {major}.{minor}; use backend 'sdpa'"
    if not hasattr(nn.attention, "restore_flash_attention_impl"):
        return f"torch {torch.__version__} cannot replace its flash kernel; install torch 2.13 or later"
    before, problem = _active_flash, None
    try:
        _replace_flash(name)
    except Exception as error:  # a module that is missing, or whose build is for another torch
        what = " ".join(str(error).split())
        problem = (
            f"torch cannot activate {version.name} ({type(error).__name__}: {what}); install the module "
            f"'{version.module}' of https://github.com/Dao-AILab/flash-attention, or use backend 'sdpa'"
        )
    _replace_flash(before)
    return problem
