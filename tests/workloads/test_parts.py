"""The parts of a decode step: every product is there, and what is timed is cold."""

from collections.abc import Callable

import pytest
import torch

from analysis.synthetic_records import matched_pair
from retbench import costs
from retbench.architectures import ModelConfig
from retbench.commands.listing import named_models
from retbench.matching import resolve_model
from retbench.workloads import parts

MODELS = [resolve_model(spec, "1m") for spec in named_models().values()]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "WARMUP_S", 0.0)
    monkeypatch.setattr(parts, "NUM_SAMPLES", 2)


@pytest.mark.parametrize("config", MODELS, ids=lambda config: f"{config.architecture}-{config.variant}")
def test_every_weight_that_a_step_multiplies_is_in_a_product(config: ModelConfig) -> None:
    shapes = parts.product_shapes(config)
    num_weights = sum(wide * out * count for (wide, out), count in shapes.items())
    in_layers = config.num_layers * costs._layer_matmul_params(config)
    assert num_weights == in_layers + config.vocab_size * config.d_model


@pytest.mark.parametrize("name", ["retnet", "transformer"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("quick")
def test_a_step_is_made_of_parts_that_take_time(name: str, dtype: str) -> None:
    backend = {"retnet": "chunkwise", "transformer": "sdpa"}[name]
    found = parts.measure_parts(matched_pair("1m")[name], dtype, 2, [64, 512], backend=backend)
    assert found.fixed_s > 0
    assert found.products_s > 0
    assert found.mixing_s.keys() == {64, 512}
    assert 0 < found.seconds(64) < 10


def test_products_are_timed_through_as_many_bytes_as_a_step_has(monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[int] = []

    def count(calls: list[Callable[[], object]]) -> float:
        swept.append(len({id(call) for call in calls}))
        return 1.0

    monkeypatch.setattr(parts, "_sweep_seconds", count)
    assert parts._product_seconds((64, 32), "float32", 1, 100 * 64 * 32 * 4) == 1.0
    parts._product_seconds((64, 32), "float32", 1, 0)
    parts._product_seconds((8, 8), "float32", 1, 10**9)
    assert swept == [100, parts.MIN_COPIES, parts.MAX_COPIES]


def test_copies_share_no_memory() -> None:
    layers = [parts._random_linear((16, 8), torch.float32) for _ in range(3)]
    assert len({layer.weight.data_ptr() for layer in layers}) == 3


@pytest.mark.usefixtures("quick")
def test_mixing_counts_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_sweep_seconds", lambda calls: 1.0)
    config = matched_pair("6m")["transformer"]
    assert parts._mixing_seconds(config, "float32", 1, 64, "sdpa") == config.num_layers
