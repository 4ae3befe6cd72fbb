"""Hybrids: a list of mixers in an experiment becomes one model, matched, equivalent in its forms, and timed alike."""

from pathlib import Path

import pytest
import torch

from retbench.architectures.configs import default_backend, form_of, parse_model_config
from retbench.architectures.hybrid import HybridSpec
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.config.experiment import Experiment
from retbench.config.experiment_files import load_experiment
from retbench.errors import ConfigError
from retbench.mixers.window_attention.config import WindowAttention
from retbench.models.build import build_model
from retbench.models.equivalence import check_equivalence
from retbench.workloads.states import fill_caches, prefilled_state

PATTERN = """
title = "A hybrid"
source = "none; made for tests"
expect = "It runs."
[models.mixed]
pattern = ["retention", "retention", {mixer = "attention", num_kv_heads = 1}]
[profiles.smoke]
size = "3m"
[profiles.smoke.workloads.decode]
context_len = [64]
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = tmp_path / "mixed.toml"
    path.write_text(PATTERN, encoding="utf-8")
    return load_experiment(str(path))


def test_a_pattern_is_repeated_over_the_layers(experiment: Experiment) -> None:
    config = resolve_model(experiment.models["mixed"], "3m")
    kinds = [layer.mixer.mixer for layer in config.layers]
    assert kinds == ["retention", "retention", "attention"] * 2
    assert [block.count for block in config.blocks] == [2, 1, 2, 1]
    assert config.grows
    assert parse_model_config(config.model_dump()) == config


def test_the_default_form_of_each_mixer_is_what_a_record_says(experiment: Experiment) -> None:
    assert experiment.models["mixed"].backend == "retention=chunkwise+attention=auto"
    assert (
        default_backend(resolve_model(experiment.models["mixed"], "1m")) == experiment.models["mixed"].backend
    )


def test_a_pattern_of_one_mixer_is_a_model_that_runs() -> None:
    spec = HybridSpec(pattern=("linear_attention",))
    model = build_model(
        resolve_model(spec, "1m"), dtype=torch.float32, device="cpu", seed=0, backend=spec.backend
    )
    assert set(model.executed_backends().values()) == set()
    model(torch.zeros(1, 9, dtype=torch.int64))
    assert set(model.executed_backends().values()) == {"chunkwise"}


def test_one_layer_in_eight_is_attention() -> None:
    config = resolve_model(HybridSpec(variant="1-in-8"), "1.3b")
    kinds = [layer.mixer.mixer for layer in config.layers]
    assert (kinds.count("attention"), kinds.count("retention")) == (3, 21)
    assert config.variant == "1-in-8"


def test_based_has_the_published_layers() -> None:
    """Layers 1, 6, ... of the first 24 at 1.3B are linear attention, and layers 2, 7, ... sliding windows."""
    spec = HybridSpec(variant="based")
    config = resolve_model(spec, "fla-1.3b")
    kinds = [layer.mixer.mixer for layer in config.layers]
    assert [index for index, kind in enumerate(kinds) if kind == "linear_attention"] == [1, 6, 11, 16, 21]
    assert [index for index, kind in enumerate(kinds) if kind == "window_attention"] == [2, 7, 12, 17, 22]
    assert kinds.count("gated_convolution") == 14
    assert HybridSpec.model_validate(spec.model_dump()) == spec
    assert HybridSpec.model_validate_json(spec.model_dump_json()).pattern == spec.pattern
    text = torch.randint(0, 256, (1, 301), generator=torch.Generator().manual_seed(0))
    small = resolve_model(spec, "1m")
    model = build_model(small, dtype=torch.bfloat16, device="cpu", seed=0, backend=spec.backend)
    gate = check_equivalence(model, text, depth=301, lengths=(1, 17, 127))
    assert gate.passed, [check for check in gate.checks if not check.passed]


def test_samba_is_mamba_and_windows_in_turn() -> None:
    spec = HybridSpec(variant="samba")
    config = resolve_model(spec, "1.3b")
    assert [layer.mixer.mixer for layer in config.layers] == ["mamba2", "window_attention"] * 12
    windows = [mixer for mixer in config.mixers if isinstance(mixer, WindowAttention)]
    assert [(mixer.window, mixer.sinks) for mixer in windows] == [(2048, 0)]
    assert all(layer.ffn for layer in config.layers)
    assert not config.grows
    assert named_specs()["hybrid-samba"] == spec


@pytest.mark.parametrize("pattern", [("retention",), 5])
def test_a_variant_with_a_pattern_of_its_own_is_refused(pattern: object) -> None:
    with pytest.raises(ConfigError, match=r"variant '1-in-8' and also the pattern"):
        HybridSpec.model_validate({"variant": "1-in-8", "pattern": pattern})


def test_a_mixer_that_no_layer_has_is_an_error() -> None:
    spec = HybridSpec(pattern=(*["retention"] * 4, "attention"))
    with pytest.raises(ConfigError, match="'attention' first as its mixer 5, and size '1m' has 4 layers"):
        resolve_model(spec, "1m")
    assert len(resolve_model(spec, "25m").mixers) == 2


def test_each_mixer_takes_its_own_form(experiment: Experiment) -> None:
    config = resolve_model(experiment.models["mixed"], "1m")
    retention, attention = config.mixers
    assert form_of(retention, "attention=reference") == "chunkwise"
    assert form_of(attention, "recurrent+reference") == "reference"
    with pytest.raises(ConfigError, match="nonsense"):
        build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="nonsense")


def test_a_filled_state_has_the_retention_of_real_text_and_caches_of_its_scale(
    experiment: Experiment,
) -> None:
    config = resolve_model(experiment.models["mixed"], "1m")
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise+sdpa")
    state = model.init_state(2, 40)
    fill_caches(model, state, 30, seed=0)
    assert state.position == 30
    for layer, real in zip(state.layers, prefilled_state(model).layers, strict=True):
        for name in layer.names("fixed"):
            assert torch.equal(layer[name], real[name].expand_as(layer[name]))
        for name in layer.names("per_token"):
            assert layer[name][:, :, :30].std() == pytest.approx(float(real[name].std()), rel=0.2)
            assert not layer[name][:, :, 30:].any()


@pytest.mark.parametrize("window", [20, 600, 2000])
@pytest.mark.parametrize("depth", [10, 1000])
def test_a_window_beside_a_growing_cache_is_filled_like_it(window: int, depth: int) -> None:
    """Its ring is as long as the context allows, which need not be that of the real prefill."""
    spec = HybridSpec(pattern=({"mixer": "window_attention", "window": window, "sinks": 0}, "attention"))
    model = build_model(
        resolve_model(spec, "1m"), dtype=torch.float32, device="cpu", seed=0, backend=spec.backend
    )
    state = model.init_state(1, depth + 1)
    fill_caches(model, state, depth, seed=0)
    ring, cache = (layer["keys"] for layer in state.layers[:2])
    assert (ring.shape[2], cache.shape[2]) == (min(window, depth + 1), depth + 1)
    assert ring[:, :, :depth].std() == pytest.approx(
        float(prefilled_state(model).layers[0]["keys"].std()), rel=0.3
    )
    model(torch.zeros(1, 1, dtype=torch.int64), state)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ('"retentoin"', "retention"),
        ("{window = 3}", "without the name of a mixer"),
        ('{mixer = "attention", num_kv_heads = 3}', "must divide"),
        ('{mixer = "attention", heads = 3}', "hybrid: 'heads' is 3: there is no such field"),
    ],
)
def test_a_wrong_pattern_is_refused_with_what_is_wrong(tmp_path: Path, item: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    table = '{mixer = "attention", num_kv_heads = 1}'
    path.write_text(PATTERN.replace(table, item), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        resolve_model(load_experiment(str(path)).models["mixed"], "3m")


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        (
            "chunkwise+recurrent",
            "no mixer takes 'recurrent', as retention takes 'chunkwise' and mamba2 takes",
        ),
        ("retention=chunkwise+retention=recurrent", "no mixer takes 'retention=recurrent'"),
        ("chunkwise+nonsense", "backend 'nonsense'"),
        ("chunkwise+attention=sdpa", "backend 'attention=sdpa'"),
    ],
)
def test_a_form_that_no_mixer_takes_is_refused_before_anything_is_measured(
    backend: str, message: str
) -> None:
    spec = HybridSpec(pattern=("retention", "mamba2"), backend=backend)
    with pytest.raises(ConfigError, match=message):
        resolve_model(spec, "300k")


def test_forms_by_the_names_of_their_mixers_are_taken() -> None:
    spec = HybridSpec(pattern=("retention", "mamba2"), backend="retention=chunkwise+mamba2=recurrent")
    forms = {mixer.mixer: form_of(mixer, spec.backend) for mixer in resolve_model(spec, "300k").mixers}
    assert forms == {"retention": "chunkwise", "mamba2": "recurrent"}
