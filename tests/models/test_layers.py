"""The parts of a block."""

import pytest
import torch
import torch.nn.functional as F

from retbench.cells import resolve_models
from retbench.config import load_experiment
from retbench.models.build import build_model
from retbench.models.decay import decay_schedule
from retbench.models.layers import GatedFeedForward
from retbench.models.linear import Linear


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
    layer = GatedFeedForward(4, 6)
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
    mixer = build_model(config, dtype=torch.float64, device="cpu", seed=0, backend="parallel").mixers[0]
    decay = mixer.log_decay.value.exp()
    found = mixer._row_norm(5, 3).squeeze(-1)
    for row, position in enumerate((5, 6, 7)):
        row_sum = sum(decay**distance for distance in range(position + 1))
        assert torch.allclose(found[row], row_sum.rsqrt())


def test_the_slowest_decay_survives_bfloat16():
    config = resolve_models(load_experiment("latency", ["size=6.7b"]), "paper")["retnet"]
    small = config.model_copy(
        update={"d_model": 64, "num_layers": 1, "value_dim": 128, "ffn_dim": 8, "vocab_size": 8}
    )
    mixer = build_model(small, dtype=torch.bfloat16, device="cpu", seed=0, backend="chunkwise").mixers[0]
    assert mixer.log_decay.value.exp().max() == pytest.approx(1 - 2**-20, abs=1e-9)
    assert mixer.init_state(1, 0).values.dtype == torch.float32
