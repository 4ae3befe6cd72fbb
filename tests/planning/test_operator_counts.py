"""The facts behind a predicted time: how many operators of each kind a step has."""

from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from retbench.architectures.configs import ModelConfig
from retbench.architectures.costs import shared_keys
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.cli import targets
from retbench.mixers.linear_attention.features import Performer
from retbench.models.build import allocate_model, build_model
from retbench.ops import DecodeOperators, fused, rms_norm
from retbench.ops.linear import RowProducts
from retbench.planning import step_rates
from retbench.planning.operator_counts import CountedOperators, count_operators
from retbench.planning.prediction import OperatorCount, StepRates

SOFTMAX_ATTENTION = ("attention", "window_attention", "latent_attention", "shared_attention")
MODELS = {name: (resolve_model(spec, "1m"), spec.backend) for name, spec in named_specs().items()}


def test_conversions_to_the_same_dtype_count_as_views() -> None:
    x = torch.ones(2, 3)
    with torch.inference_mode(), CountedOperators() as counted:
        x.t().reshape(6).view(2, 3)
        x.to(torch.float32)
        assert counted.found == OperatorCount(0, 0, views=4)
        x.mul_(2)
        torch.mm(x, x.t().to(torch.float64).to(torch.float32))
    assert counted.found == OperatorCount(4, 1, views=5)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_on_the_meta_device_has_the_operators_of_one_on_the_cpu(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rms_norm, "_is_wide_row", lambda x: False)  # a norm counts as one operator everywhere
    config, backend = MODELS[name]
    assert count_operators(config, torch.float32, backend=backend) == _count_on_cpu(config, backend)


@pytest.mark.parametrize(("name", "eager", "executed"), [("retnet", 586, 251), ("transformer", 417, 250)])
def test_fused_operators_are_counted_where_steps_have_them(name: str, eager: int, executed: int) -> None:
    spec = named_specs()[name]
    config = resolve_model(spec, "1.3b")
    counts = {
        operators: count_operators(config, torch.bfloat16, backend=spec.backend, decode_operators=operators)
        for operators in get_args(DecodeOperators)
    }
    assert (counts["eager"].total, counts["fused"].total) == (eager, executed)


@pytest.mark.parametrize("operators", get_args(DecodeOperators))
def test_a_prediction_counts_and_names_the_operators_that_steps_take(
    monkeypatch: pytest.MonkeyPatch, operators: DecodeOperators
) -> None:
    monkeypatch.setattr(fused, "default_operators", lambda device, dtype: operators)
    monkeypatch.setattr(targets, "become_worker", lambda device: 1)
    monkeypatch.setattr(targets, "alone_on_machine", lambda *_: nullcontext())
    rates = StepRates(((1, 1e9),), ((1, 1e9),), ((1, 1e9),), 1e12, ((1, 1e12),), operator_s=1.0)
    monkeypatch.setattr(step_rates, "measure_step_rates", lambda *_, **__: rates)
    config, backend = MODELS["retnet"]
    found = targets.measured_target("cpu", {"retnet": (config, backend)}, "bfloat16", compiled=False)
    count = count_operators(config, torch.bfloat16, backend=backend, decode_operators=operators)
    assert found.times.expected is not None
    assert int(found.times.expected(config, 1, 64)) == count.total  # an operator takes a second
    assert found.source == f"operators of {operators} steps measured now"


def test_a_datasheet_counts_fused_operators_and_published_steps_eager_ones() -> None:
    config, backend = MODELS["retnet"]
    models = {"retnet": (config, backend)}
    for asked, operators in ((None, "fused"), ("eager", "eager")):
        found = targets.count_kernels(models, "bfloat16", asked)
        count = count_operators(config, torch.bfloat16, backend=backend, decode_operators=operators)
        assert found == {"retnet": count}


@torch.inference_mode()
def _count_on_cpu(config: ModelConfig, backend: str) -> OperatorCount:
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=backend)
    model.set_row_products(RowProducts())
    state, token = model.init_state(1, 4), torch.zeros(1, 1, dtype=torch.int64)
    model(token, state)
    with CountedOperators() as counted:
        model(token, state)
    return counted.found


class _VainConversions(TorchDispatchMode):
    """Counts conversions to the dtype that a tensor has."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += func.overloadpacket.__name__ == "to" and args[0].dtype in args[1:]
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def test_a_decode_step_converts_no_tensor_to_its_own_dtype() -> None:
    for name, (config, backend) in MODELS.items():
        model = allocate_model(config, dtype=torch.float32, device="meta", backend=backend)
        state, token = model.init_state(1, 4), torch.zeros(1, 1, dtype=torch.int64, device="meta")
        model(token, state)
        with _VainConversions() as counted:
            model(token, state)
        assert counted.found == 0, name


def test_the_products_are_those_with_weights_and_up_to_two_of_each_mixer_but_convolutions() -> None:
    for config, backend in MODELS.values():
        model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=backend)
        # Random features multiply queries and keys; low ranks are matrices outside of projections.
        with_weights = sum(
            isinstance(part, nn.Linear) + 2 * isinstance(part, Performer) for part in model.modules()
        )
        matrices = sum(weight.dim() > 1 for weight in model.parameters()) - 1  # the embedding is looked up
        count = count_operators(config, torch.float32, backend=backend)
        products, attentions = count.products, count.attentions + count.shared_attentions
        mixing = sum(layer.mixer.mixer != "gated_convolution" for layer in config.layers)
        assert with_weights + mixing <= products + attentions <= max(with_weights, matrices) + 3 * mixing
        assert attentions == sum(layer.mixer.mixer in SOFTMAX_ATTENTION for layer in config.layers)


def test_attention_to_shared_keys_is_counted_by_itself() -> None:
    for name, (config, backend) in MODELS.items():
        found = count_operators(config, torch.float32, backend=backend)
        assert bool(found.shared_attentions) == bool(shared_keys(config, "float32", 1, 64)), name
        assert not (found.attentions and found.shared_attentions), name
