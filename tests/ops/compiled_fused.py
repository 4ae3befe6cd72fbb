"""The kernels compiled to machine code of GPUs, which needs none: what the interpreter takes, a compiler may refuse.

`test_fused` runs this file in a process of its own, so that Triton stays out of the process of the other tests.
"""

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from retbench.ops import fused_kernels as kernels

FLOAT32 = {"decay", "state", "cos", "sin"}
NUMBERS = {"key_scale": "fp32", "eps": "fp32", "strides": ("i32",) * 4}
ABSENT = None
ROTARY = {"K": 128, "LAYOUT": "half"}
STEP = {"H": 8, "V": 512, "BLOCK_K": 128, "BLOCK_V": 32, "DECAYS_CHANNELS": False}
NO_ROTARY = {"K": 24, "LAYOUT": "none", "cos": ABSENT, "sin": ABSENT, "row_norm": ABSENT}
CACHE = {"H": 32, "HKV": 8, "BLOCK": 128}
HEAD_NORM = {"H": 8, "V": 512, "BLOCK": 512}
NORM = {"D": 4096, "BLOCK": 4096}

VARIANTS = [
    (kernels.retention_step_kernel, {**STEP, **ROTARY}),
    (kernels.retention_step_kernel, {**STEP, **ROTARY, "LAYOUT": "interleaved"}),
    (kernels.retention_step_kernel, {**STEP, **NO_ROTARY, "V": 40, "BLOCK_K": 32}),
    (kernels.retention_step_kernel, {**STEP, **NO_ROTARY, "DECAYS_CHANNELS": True}),
    (kernels.norm_gate_kernel, {**HEAD_NORM, "NORM": "rms"}),
    (kernels.norm_gate_kernel, {**HEAD_NORM, "NORM": "layer", "weight": ABSENT, "gate": ABSENT}),
    (kernels.rotate_and_cache_kernel, {**CACHE, **ROTARY}),
    (kernels.rotate_and_cache_kernel, {**CACHE, **ROTARY, "LAYOUT": "interleaved"}),
    (
        kernels.rotate_and_cache_kernel,
        {**CACHE, **ROTARY, "HKV": 0},
    ),  # for a layer that reads the cache of another
    (kernels.add_norm_kernel, {**NORM, "NORM": "rms", "bias": ABSENT}),
    (kernels.add_norm_kernel, {**NORM, "NORM": "layer", "added": ABSENT, "total": ABSENT}),
    (kernels.silu_multiply_kernel, {"F": 11008, "BLOCK": 1024}),
]


def type_of(name):
    """Type of an argument: numbers are named above or end in _stride, everything else is a pointer."""
    if name in NUMBERS:
        return NUMBERS[name]
    if name.endswith("_stride") or name in ("sinks", "window"):
        return "i32"
    if name == "position":
        return "*i64"
    return "*fp32" if name in FLOAT32 else "*bf16"


FIRST_OF_EACH = list({id(kernel): (kernel, fixed) for kernel, fixed in reversed(VARIANTS)}.values())


@pytest.mark.parametrize(
    ("kernel", "fixed", "capability"),
    [*((*variant, 80) for variant in VARIANTS), *((*variant, 90) for variant in FIRST_OF_EACH)],
)
def test_a_kernel_compiles(kernel, fixed, capability):
    signature = {name: "constexpr" if name in fixed else type_of(name) for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    # Fused multiply-adds, as before Triton 3.10 by default; asked for, since 3.9 warns where nothing is.
    built = compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
    assert built.asm["cubin"]
