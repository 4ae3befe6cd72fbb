"""The kernels compiled to machine code of GPUs, which needs none: what the interpreter takes, a compiler may refuse.

`test_fused` runs this file in a process of its own, so that Triton stays out of the process of the other tests.
"""

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from retbench.ops import fused_kernels as kernels
from retbench.ops import fused_linear_kernels as linear_kernels

FLOAT32 = {"state", "cos", "sin"}
NUMBERS = {
    "query_scale": "fp32",
    "key_scale": "fp32",
    "eps": "fp32",
    "strides": ("i32",) * 4,
    "weight_strides": ("i32",) * 2,
}
ABSENT = None
ROTARY = {"K": 128, "LAYOUT": "half"}
UNGATED = {"gates": ABSENT, "gate_bias": ABSENT, "gate_rate": ABSENT}
STEP = {
    **UNGATED,
    "H": 8,
    "V": 512,
    "VALUES": 512,
    "SHARED": 1,
    "WIDTH": 128,
    "MAP": "none",
    "GATE": "decay",
    "GATES_CHANNELS": False,
    "BLOCK_K": 128,
    "BLOCK_V": 32,
    "row_norm": ABSENT,
    "bonus": ABSENT,
}
NO_ROTARY = {"K": 24, "WIDTH": 24, "LAYOUT": "none", "cos": ABSENT, "sin": ABSENT}
CACHE = {"H": 32, "HKV": 8, "BLOCK": 128}
HEAD_NORM = {"H": 8, "V": 512, "BLOCK": 512}
NORM = {"D": 4096, "BLOCK": 4096}


def _without(fixed, *given):
    """Return what is compiled in without some arguments, which are given."""
    return {name: value for name, value in fixed.items() if name not in given}


VARIANTS = [
    (linear_kernels.linear_step_kernel, _without({**STEP, **ROTARY}, "gates", "row_norm")),
    (linear_kernels.linear_step_kernel, {**STEP, **ROTARY, "LAYOUT": "interleaved"}),
    (linear_kernels.linear_step_kernel, {**STEP, **NO_ROTARY, "V": 40, "VALUES": 40, "BLOCK_K": 32}),
    (
        linear_kernels.linear_step_kernel,
        _without({**STEP, **NO_ROTARY, "GATES_CHANNELS": True, "GATE": "sigmoid"}, "gates"),
    ),
    (
        linear_kernels.linear_step_kernel,
        _without(
            {**STEP, **NO_ROTARY, "GATES_CHANNELS": True, "GATE": "exponential"},
            "gates",
            "gate_bias",
            "bonus",
        ),
    ),
    (
        linear_kernels.linear_step_kernel,
        _without({**STEP, **NO_ROTARY, "SHARED": 4, "GATE": "time_step"}, "gates", "gate_bias", "gate_rate"),
    ),
    (linear_kernels.linear_step_kernel, {**STEP, **NO_ROTARY, "V": 65, "VALUES": 64, "MAP": "elu"}),
    (
        linear_kernels.linear_step_kernel,
        {**STEP, **NO_ROTARY, "V": 65, "VALUES": 64, "K": 273, "WIDTH": 16, "MAP": "taylor"},
    ),
    (linear_kernels.convolution_step_kernel, {"D": 2304, "W": 4, "BLOCK": 512}),
    (linear_kernels.convolution_step_kernel, {"D": 40, "W": 2, "BLOCK": 512, "bias": ABSENT}),
    (linear_kernels.shift_kernel, {"B": 2, "D": 2048, "J": 5, "KEEPS": True, "BLOCK": 512}),
    (linear_kernels.shift_kernel, {"B": 2, "D": 40, "J": 1, "KEEPS": False, "BLOCK": 512}),
    (linear_kernels.gated_norm_kernel, {"D": 4096, "P": 64, "GROUPS": 1, "BLOCK": 4096}),
    (
        kernels.cache_latent_kernel,
        {"H": 16, "K": 192, "R": 512, "P": 64, "BLOCK_K": 128, "BLOCK_R": 512, "BLOCK_P": 64},
    ),
    (linear_kernels.norm_gate_kernel, {**HEAD_NORM, "NORM": "layer"}),
    (
        linear_kernels.norm_gate_kernel,
        {**HEAD_NORM, "NORM": "sum", "weight": ABSENT, "bias": ABSENT, "gate": ABSENT},
    ),
    (linear_kernels.norm_gate_kernel, {**HEAD_NORM, "NORM": "rms", "bias": ABSENT}),
    (
        linear_kernels.norm_gate_kernel,
        {**HEAD_NORM, "NORM": "layer", "weight": ABSENT, "bias": ABSENT, "gate": ABSENT},
    ),
    (kernels.rotate_and_cache_kernel, {**CACHE, **ROTARY}),
    (kernels.rotate_and_cache_kernel, {**CACHE, **ROTARY, "LAYOUT": "interleaved"}),
    (
        kernels.rotate_and_cache_kernel,
        {**CACHE, **ROTARY, "HKV": 0},
    ),  # for a layer that reads the cache of another
    (kernels.add_norm_kernel, {**NORM, "NORM": "rms", "bias": ABSENT}),
    (kernels.add_norm_kernel, {**NORM, "NORM": "layer", "added": ABSENT, "total": ABSENT}),
    (kernels.activate_kernel, {"F": 11008, "BLOCK": 1024, "KIND": "silu"}),
    (kernels.activate_kernel, {"F": 40, "BLOCK": 1024, "KIND": "sigmoid"}),
    (kernels.activate_kernel, {"F": 7168, "BLOCK": 1024, "KIND": "relu_squared", "factor": ABSENT}),
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
