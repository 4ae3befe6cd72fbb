"""The parts of a decode step: all that a step multiplies and mixes is there, in its order."""

import time
from collections import Counter
from functools import partial

import pytest
import torch

from analysis.synthetic_records import matched_pair
from retbench.architectures import ModelConfig, RetNetConfig
from retbench.commands.listing import named_models
from retbench.matching import resolve_model
from retbench.models.decoder import Decoder
from retbench.models.linear import Linear
from retbench.workloads import parts

MODELS = [resolve_model(spec, "1m") for spec in named_models().values()]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "WARMUP_S", 0.0)
    monkeypatch.setattr(parts, "NUM_SAMPLES", 2)


def products_of_a_step(model: Decoder) -> list[Linear]:
    """The products in the order in which a decode step makes them."""
    seen: list[Linear] = []
    for part in model.modules():
        if isinstance(part, Linear):
            part.register_forward_pre_hook(lambda module, _: seen.append(module))
    with torch.inference_mode():
        model(torch.zeros(1, 1, dtype=torch.int64), model.init_state(1, 1))
    return seen


@pytest.mark.parametrize("config", MODELS, ids=lambda config: f"{config.architecture}-{config.variant}")
def test_a_rehearsal_makes_the_products_of_a_step_and_one_mixing_a_layer(config: ModelConfig) -> None:
    model = parts._build(config, "float32", "sdpa")
    calls = [
        call.func if isinstance(call, partial) else call
        for call in parts.rehearsal(model, model.init_state(1, 9), 1, 8)
    ]
    products = [call for call in calls if isinstance(call, Linear)]
    real = products_of_a_step(model)
    if isinstance(config, RetNetConfig) and config.decay == "gated":  # the decay's product is early in a step
        assert Counter(products) == Counter(real)
    else:
        assert products == real
    assert len(calls) - len(products) == config.num_layers


@pytest.mark.parametrize("name", ["retnet", "transformer"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("quick")
def test_a_step_is_made_of_parts_that_take_time(name: str, dtype: str) -> None:
    backend = {"retnet": "chunkwise", "transformer": "sdpa"}[name]
    found = parts.measure_parts(matched_pair("1m")[name], dtype, 2, [64, 512], backend=backend)
    assert found.fixed_s > 0
    assert found.parts_s.keys() == {64, 512}
    assert min(found.parts_s.values()) > 0
    assert 0 < found.seconds(64) < 10


@pytest.mark.usefixtures("quick")
def test_a_rehearsal_is_as_long_as_its_calls_together() -> None:
    pause_s = 0.002
    assert 3 * pause_s <= parts._rehearsal_seconds([partial(time.sleep, pause_s)] * 3) < 0.5
