"""Models as built: seeded, counted, in the dtype asked for."""

import pytest
import torch

from retbench.architectures import costs
from retbench.architectures.matching import resolve_model
from retbench.architectures.sizes import SIZES
from retbench.config.experiment_files import load_experiment
from retbench.models.build import build_model, usable_backends
from retbench.models.decoder import Decoder
from tests.models.cases import CASES, backends_of, config_of

FEW_LAYERS = 6


def with_few_layers(config):
    """Cut a model whose layers are all alike to the layers of size 25M: building many layers takes long."""
    if len(config.blocks) > 1:
        return config
    block = config.blocks[0]
    return config.model_copy(
        update={"blocks": (block.model_copy(update={"count": min(block.count, FEW_LAYERS)}),)}
    )


@pytest.mark.parametrize("case", CASES)
def test_parameters_of_every_size_equal_the_closed_form(case):
    for size in SIZES:
        config = with_few_layers(config_of(case, size))
        with torch.device("meta"):
            model = Decoder(config, backends_of(case)[1])
        counted = sum(parameter.numel() for parameter in model.parameters())
        embedding = model.embedding.weight.numel() + model.head.weight.numel()
        assert counted == costs.num_params(config), size
        assert counted - embedding == costs.num_params_nonembedding(config), size
        state = model.init_state(2, 100)
        state.start_at(100)
        assert state.num_bytes == costs.state_bytes(config, "float32", 2, 100), size


def refuse(*_):
    raise AssertionError("products are timed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_can_run_is_known_without_weights_and_without_timing_products(dtype, monkeypatch):
    configs = [config_of(name) for name in ("fla", "llama-grouped-query", "mla")]
    expected = [
        build_model(config, dtype=dtype, device="cpu", seed=0, backend=config.forms[0]).backends()
        for config in configs
    ]
    monkeypatch.setattr("retbench.models.build.row_products", refuse)
    assert [usable_backends(config, dtype=dtype, device="cpu") for config in configs] == expected
    assert any(reason for reason in expected[1].values())


def small(dtype=torch.float32, seed=0):
    return build_model(config_of("fla"), dtype=dtype, device="cpu", seed=seed, backend="chunkwise")


def test_one_seed_gives_one_model():
    first, second, other = small().state_dict(), small().state_dict(), small(seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_weight_has_the_dtype_asked_for(dtype):
    model = small(dtype)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert model.mixers[0].log_decay.value.dtype == torch.float64


def test_weights_are_drawn_as_stated():
    weights = dict(small().named_parameters())
    assert weights["head.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(weights["norm.weight"], torch.ones(128))


def test_a_layer_norm_starts_with_a_bias_of_zero():
    model = build_model(config_of("gpt"), dtype=torch.float32, device="cpu", seed=0, backend="sdpa")
    assert torch.equal(model.norm.weight, torch.ones(128))
    assert torch.equal(model.norm.bias, torch.zeros(128))


def started(name, initialisation="published"):
    return build_model(
        resolve_model(load_experiment("kin_quality").models[name], "1m", vocab_size=256),
        dtype=torch.float32,
        device="cpu",
        seed=0,
        backend="chunkwise",
        initialisation=initialisation,
    )


def test_published_projections_of_mamba2_are_uniform_and_the_last_falls_with_the_depth():
    model = started("mamba2")
    for projection, depth in ((model.mixers[0].in_proj, 1), (model.mixers[0].out_proj, len(model.blocks))):
        bound = (projection.in_features * depth) ** -0.5
        assert projection.weight.abs().max().item() == pytest.approx(bound, rel=0.001)
        assert projection.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("name", ["retnet", "gated_retnet"])
def test_published_projections_of_retention_are_xavier_uniform(name):
    mixer = started(name).mixers[1]
    parts = [(weight, 2**-2.5) for weight in mixer.qkvg_proj.weight.split(mixer._widths)]
    parts += [(mixer.decay_proj.weight, 2**-2.5)] if name == "gated_retnet" else []
    for weight, gain in [*parts, (mixer.out_proj.weight, 2**-1)]:
        drawn = torch.empty(weight.shape)
        torch.nn.init.xavier_uniform_(drawn, gain, generator=torch.Generator().manual_seed(0))
        assert weight.abs().max().item() == pytest.approx(drawn.abs().max().item(), rel=0.02)
        assert weight.std().item() == pytest.approx(drawn.std().item(), rel=0.05)


def test_published_projections_of_rwkv_are_orthogonal_or_zero():
    model = started("rwkv6")
    block = model.blocks[1]
    mix, channels, d = block.mixer, block.ffn, model.config.d_model
    gains = {mix.receptance_proj: 1, mix.key_proj: 0.1, mix.value_proj: 1, mix.gate_proj: 0.1}
    gains[channels.key_proj] = (channels.key_proj.out_features / d) ** 0.5
    for projection, gain in gains.items():
        product = projection.weight.T @ projection.weight
        torch.testing.assert_close(product, gain**2 * torch.eye(d), atol=1e-5, rtol=1e-5)
    zeros = [mix.out_proj.weight, mix.mix_down, mix.decay_down]
    zeros += [channels.value_proj.weight, channels.receptance_proj.weight]
    assert not any(weight.any() for weight in zeros)
    assert mix.mix_up.abs().max().item() == pytest.approx(0.01, rel=0.01)
    assert mix.decay_up.abs().max().item() == pytest.approx(0.01, rel=0.01)


def test_a_model_of_zero_projections_learns():
    model = started("rwkv6").train()
    tokens = torch.arange(65)[None] % 7
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    assert all(weight.any() for name, weight in model.named_parameters() if "down" in name or "proj" in name)


@pytest.mark.parametrize(
    ("name", "redrawn"),
    [
        ("retnet", ("qkvg_proj.", "out_proj.")),
        ("gla", ()),
        ("mamba2", ("_proj.",)),
        ("rwkv6", ("_proj.", "_down", "_up")),
    ],
)
def test_vectors_and_all_other_models_start_alike_either_way(name, redrawn):
    plain, own = (dict(started(name, how).named_parameters()) for how in ("plain", "published"))
    assert started(name).config.has_published_init == bool(redrawn)
    # After the first block the generator of random numbers is elsewhere.
    for weight in (weight for weight in plain if weight.startswith("blocks.0.") or not redrawn):
        assert torch.equal(plain[weight], own[weight]) != any(part in weight for part in redrawn), weight
