"""The parts of a decode step: all that a step multiplies and mixes is there, in its order."""

import time
from collections import Counter
from functools import partial

import pytest
import torch

from report.synthetic_records import matched_pair
from retbench.architectures.configs import ModelConfig, default_backend
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.models.decoder import Decoder
from retbench.ops.linear import Linear
from retbench.workloads import parts

MODELS = [resolve_model(spec, "1m") for spec in named_specs().values()]


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
def test_the_parts_are_the_products_of_a_step_and_one_mixing_a_layer(config: ModelConfig) -> None:
    model = parts._build(config, "float32", default_backend(config))
    found = parts.parts_of(model, model.init_state(1, 9), 1, 8)
    products = [call.func for call, *_ in found if isinstance(call, partial)]
    real = products_of_a_step(model)
    if config.variant == "yoco":  # the product of the gated decay is early in a step
        assert Counter(products) == Counter(real)
    else:
        assert products == real
    assert sum(len(calls) - 1 for calls in found) == config.num_layers


@pytest.mark.parametrize("name", ["retnet", "transformer"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("quick")
def test_a_step_takes_time_at_every_length(name: str, dtype: str) -> None:
    backend = {"retnet": "chunkwise", "transformer": "sdpa"}[name]
    found = parts.measure_parts(matched_pair("1m")[name], dtype, 2, [64, 512], backend=backend)
    assert found.step_s.keys() == {64, 512}
    assert all(0 < seconds < 10 for seconds in found.step_s.values())


@pytest.mark.usefixtures("quick")
def test_a_step_that_carries_parts_takes_as_long_as_they_do_and_is_free_of_them_afterwards() -> None:
    narrow = parts._build(parts._narrowed(matched_pair("1m")["retnet"]), "float32", "chunkwise")
    pause_s, num_products = 0.002, len(parts._products(narrow))
    made: list[float] = []

    def pause() -> None:
        time.sleep(pause_s)
        made.append(pause_s)

    assert num_products * pause_s <= parts._carrying_seconds(narrow, [[pause]] * num_products, 1) < 5.0
    before = len(made)
    narrow(torch.zeros(1, 1, dtype=torch.int64))
    assert len(made) == before > 0
