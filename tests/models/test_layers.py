"""The parts of a block."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from retbench.architectures.retnet import retnet_config
from retbench.config.experiment_files import load_experiment
from retbench.models.build import build_model
from retbench.ops.decay import decay_schedule
from retbench.ops.layers import SwigluFeedForward
from retbench.ops.linear import Linear
from retbench.planning.cells import resolve_models


@pytest.mark.parametrize("rows", [(1, 1), (2, 5), (1,)])
@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (3, 1), (16, 4096), (12, 4096)])
def test_linear_is_nn_linear(shape, rows):
    """In each way it computes: one row without gradients, several rows, one row with gradients."""
    ours, theirs = Linear(*shape), torch.nn.Linear(*shape, bias=False)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(*rows, shape[0])
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert ours.weight.shape == theirs.weight.shape


def test_linear_keeps_its_layout_through_casts_and_loads():
    layer = Linear(8, 24).to(torch.bfloat16)
    assert layer.weight.t().is_contiguous()
    layer.load_state_dict(torch.nn.Linear(8, 24, bias=False).state_dict())
    assert layer.weight.t().is_contiguous()


def test_feed_forward_is_swiglu():
    layer = SwigluFeedForward(4, 6)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    x = torch.randn(1, 3, 4)
    gate, up = layer.gate_up_proj.weight.split(6)
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ layer.down_proj.weight.T
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_decay_schedules_have_the_published_values():
    """Eq. 8 of the paper; and Sec. 3.1's schedule at h = 4."""
    eq8 = decay_schedule("eq8", 4).exp()
    assert eq8.tolist() == pytest.approx([1 - 2**-5, 1 - 2**-6, 1 - 2**-7, 1 - 2**-8], rel=1e-14)
    paper = decay_schedule("paper", 4).exp()
    assert paper.tolist() == pytest.approx([0.96875, 0.987598, 0.995078, 0.998047], abs=5e-7)


def test_row_normaliser_is_the_row_sum_of_the_decay_matrix():
    config = resolve_models(
        load_experiment("latency", ["size=1m", "models.retnet.variant=torchscale"]), "cpu"
    )["retnet"]
    model = build_model(config, dtype=torch.float64, device="cpu", seed=0, backend="parallel")
    decay = model.mixers[0].log_decay.value.exp()
    positions = model.encodings[0](5, 3, torch.float64)
    found = positions.row_norm.squeeze(-1)
    assert torch.equal(positions.last.row_norm, positions.row_norm[-1:])
    for row, position in enumerate((5, 6, 7)):
        row_sum = sum(decay**distance for distance in range(position + 1))
        assert torch.allclose(found[row], row_sum.rsqrt())


class Counting(TorchDispatchMode):
    """Counts the operators that run, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def test_a_decode_step_computes_no_fixed_decay_and_the_row_norm_once_for_all_blocks():
    config = resolve_models(
        load_experiment("latency", ["size=1m", "models.retnet.variant=torchscale"]), "cpu"
    )["retnet"]
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise")
    state = model.init_state(1, 0)
    token = torch.zeros(1, 1, dtype=torch.int64)
    with Counting() as counting:
        model(token, state)
    assert config.num_layers > 1
    assert counting.counts["addcmul_"] == config.num_layers
    assert counting.counts["exp"] == 0
    assert counting.counts["expm1"] == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_decay_of_a_step_is_rounded_once_to_the_dtype_of_the_state(dtype):
    config = resolve_models(load_experiment("latency", ["size=1m"]), "cpu")["retnet"]
    built = build_model(config, dtype=dtype, device="cpu", seed=0, backend="chunkwise")
    cast = build_model(config, dtype=torch.float64, device="cpu", seed=0, backend="chunkwise").to(dtype)
    for model in (built, cast):
        mixer, state = model.mixers[0], model.init_state(1, 0).layers[0]["values"]
        assert mixer.decay.value.dtype == state.dtype
        assert torch.equal(mixer.decay.value, mixer.log_decay.value.exp().to(state.dtype))


def test_the_slowest_decay_survives_bfloat16():
    config = resolve_models(load_experiment("latency", ["size=6.7b"]), "paper")["retnet"]
    heads = config.mixer.num_heads
    small = retnet_config(d_model=64, num_layers=1, num_heads=heads, value_dim=128, ffn_dim=8, vocab_size=8)
    model = build_model(small, dtype=torch.bfloat16, device="cpu", seed=0, backend="chunkwise")
    assert model.mixers[0].log_decay.value.exp().max() == pytest.approx(1 - 2**-20, abs=1e-9)
    assert model.init_state(1, 0).layers[0]["values"].dtype == torch.float32
