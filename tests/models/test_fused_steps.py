"""Decode steps by the fused operators: how they are chosen, and how many kernels a layer of a step launches.

Kernels are counted on the meta device, which computes nothing, so that the test needs no GPU and no Triton.
"""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from retbench.architectures.registry import find_architecture
from retbench.errors import ConfigError, UnsupportedError
from retbench.models.build import build_model
from retbench.ops import fused
from tests.models import test_cuda
from tests.models.fused_cases import fused_configs
from tests.ops.own_process import run_in_own_process

CONFIGS = fused_configs()
NO_KERNELS = {
    "_unsafe_view",
    "alias",
    "detach",
    "expand",
    "permute",
    "promote_types",
    "reshape",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unflatten",
    "unbind",
    "unsqueeze",
    "view",
    "view_as_complex",
    "view_as_real",
}


class CountedKernels(TorchDispatchMode):
    """Counts what the dispatcher executes, by name, except what launches no kernel, such as views."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self.ignored = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not self.ignored and name not in NO_KERNELS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


WHOLE = {F.rms_norm: 1, F.scaled_dot_product_attention: 2}
"""Kernels of operators that the meta device takes apart and a GPU does not; attention splits and joins the keys."""


class WholeOperators(TorchFunctionMode):
    """Counts the operators in WHOLE as the kernels of a GPU."""

    def __init__(self, counted):
        super().__init__()
        self.counted = counted

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in WHOLE:
            return func(*args, **(kwargs or {}))
        self.counted.counts[func.__name__] += WHOLE[func]
        self.counted.ignored = True
        out = func(*args, **(kwargs or {}))
        self.counted.ignored = False
        return out


@torch.no_grad()
def count_kernels(case, operators, index=0):
    """Return the kernels of a second step of one block, by name: the first step also records what it executes."""
    config = CONFIGS[case]
    model = build_model(
        config,
        dtype=torch.bfloat16,
        device="cpu",
        seed=0,
        backend=next(form for form in ("sdpa", "blocks", *config.forms) if form in config.forms),
        decode_operators=operators,
    ).to("meta")
    state = model.init_state(1, 64)
    position = model._encode(8, 1)[model._encoding_of[index]]
    x = torch.empty(1, 1, config.d_model, dtype=model.dtype, device="meta")
    block, layer = model.blocks[index], state.layers[config.state_layers[index]]
    block(x, layer, position)
    counted = CountedKernels()
    with counted, WholeOperators(counted):
        block(x, layer, position)
    return counted.counts


@pytest.fixture
def everywhere(monkeypatch):
    """Fused operators on any device; their registered shapes need no kernel."""
    monkeypatch.setattr(fused, "missing_reason", lambda device, dtype: None)


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("fla", 10),
        ("torchscale", 10),
        ("paper", 10),
        ("yoco", 11),
        ("gla", 11),
        ("llama-grouped-query", 11),
        ("gpt", 11),
        ("sliding-window", 11),
        ("linear-elu", 10),
        ("linear-identity", 10),
        ("linear-performer", 38),
        ("linear-taylor", 10),
        ("mamba2", 7),
        ("mla", 17),
        ("mla-compressed", 19),
        ("rwkv6", 25),
        ("rwkv5", 18),
        ("convolution-first", 10),
    ],
)
@pytest.mark.usefixtures("everywhere")
def test_a_fused_step_launches_as_many_kernels_as_known(case, count):
    """The count is one term of a predicted time. A smaller one is a gain: change it here."""
    counts = count_kernels(case, "fused")
    assert counts.total() == count, counts


@pytest.mark.usefixtures("everywhere")
def test_a_layer_that_reads_the_cache_of_another_launches_as_many_kernels_as_that_layer():
    writer, reader = (count_kernels("yoco-gated", "fused", index).total() for index in (2, 3))
    assert (writer, reader) == (11, 11)


@pytest.mark.parametrize(
    ("case", "count"), [("fla", 24), ("torchscale", 25), ("llama-grouped-query", 18), ("gpt", 17)]
)
def test_an_eager_step_launches_as_many_kernels_as_known(case, count):
    """A change of the count is a change of the baseline that fused steps are compared with."""
    counts = count_kernels(case, "eager")
    assert counts.total() == count, counts


def test_decode_operators_are_chosen_by_name():
    config = CONFIGS["fla"]
    made = {"dtype": torch.float32, "device": "cpu", "seed": 0, "backend": config.forms[0]}
    assert build_model(config, **made).decode_operators == "eager"
    with pytest.raises(
        UnsupportedError, match=r"decode operators 'fused' cannot run here: .*CUDA devices only"
    ):
        build_model(config, **made, decode_operators="fused")
    with pytest.raises(ConfigError, match="fast"):
        build_model(config, **made, decode_operators="fast")


@pytest.mark.parametrize("part", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_fused_steps_of_models_are_their_eager_steps(part):
    run_in_own_process("tests/models/interpreted_decode.py", part, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_fused_steps_can_be_compiled():
    run_in_own_process("tests/models/interpreted_compiled.py", TRITON_INTERPRET="1")


@pytest.mark.parametrize("decode", ["sdpa:flash", "fused+sdpa:flash", "fused+flash"])
def test_a_fused_step_leaves_the_attention_kernel_of_a_baseline_known(decode):
    config = CONFIGS["llama-grouped-query"]
    features = find_architecture(config.architecture).features
    assert "fused" in features(config, {"decode": decode})
    assert "fused" not in features(config, {"decode": "fused+sdpa:math"})


def test_kernels_that_cannot_be_launched_fail_the_test_of_fused_steps_where_triton_is_installed(monkeypatch):
    monkeypatch.setattr(fused, "missing_reason", lambda device, dtype: "Triton needs a C compiler")
    monkeypatch.setattr(pytest, "importorskip", lambda name: None)
    with pytest.raises((AssertionError, pytest.skip.Exception)) as caught:
        test_cuda.test_fused_steps_are_eager_steps("retnet")
    assert caught.type is AssertionError


def test_on_the_meta_device_fused_operators_need_no_kernel():
    meta = torch.device("meta")
    assert fused.missing_reason(meta, torch.bfloat16) is None
    assert "too coarse for float64" in str(fused.missing_reason(meta, torch.float64))
