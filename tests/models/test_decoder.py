"""A whole model: decoding equals one pass, whatever the architecture, the segments and the batch."""

import pytest
import torch

from retbench.cells import resolve_models
from retbench.config import load_experiment
from retbench.errors import ConfigError, UnsupportedError
from retbench.models.build import build_model
from retbench.models.gate import relative_error

OVERRIDES = {
    "retnet-fla": ["models.retnet.variant=fla"],
    "retnet-torchscale": ["models.retnet.variant=torchscale"],
    "transformer": [],
    "transformer-gqa": ["models.transformer.num_kv_heads=1"],
}


def config_of(name, size="1m"):
    experiment = load_experiment("latency", [f"size={size}", "allow_mismatch=true", *OVERRIDES[name]])
    return resolve_models(experiment, "cpu")[name.split("-")[0]]


def backends_of(name):
    return ("parallel", "chunkwise", "recurrent") if name.startswith("retnet") else ("reference", "sdpa")


CASES = [(name, backend) for name in OVERRIDES for backend in backends_of(name)]


def build(name, backend, dtype=torch.float64):
    return build_model(config_of(name), dtype=dtype, device="cpu", seed=3, backend=backend, chunk_size=16)


TEXT = torch.randint(0, 256, (2, 90), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "backend"), CASES)
@torch.no_grad()
def test_prefill_in_segments_then_decoding_equals_one_pass(name, backend):
    model = build(name, backend)
    expected = model(TEXT)
    state = model.init_state(2, 90)
    logits = [model.prefill(TEXT[:, :61], state, segment_len=17)]
    logits += [model(TEXT[:, t : t + 1], state) for t in range(61, 90)]
    assert relative_error(torch.cat(logits, dim=1), expected[:, 60:]) < 1e-10


@pytest.mark.parametrize("name", OVERRIDES)
@torch.no_grad()
def test_backends_agree(name):
    model = build(name, backends_of(name)[0])
    expected = model(TEXT)
    for backend in backends_of(name)[1:]:
        model.set_backend(backend)
        assert relative_error(model(TEXT), expected) < 1e-10, backend


@pytest.mark.parametrize("name", OVERRIDES)
@torch.no_grad()
def test_a_batch_gives_what_its_sequences_give_alone(name):
    model = build(name, backends_of(name)[1])
    together = model(TEXT)
    for row in range(2):
        assert relative_error(model(TEXT[row : row + 1]), together[row : row + 1]) < 1e-10


@pytest.mark.parametrize("name", OVERRIDES)
@torch.no_grad()
def test_last_only_is_the_last_of_all(name):
    model = build(name, backends_of(name)[1])
    assert relative_error(model(TEXT, last_only=True), model(TEXT)[:, -1:]) < 1e-12


@pytest.mark.parametrize("name", OVERRIDES)
def test_every_weight_gets_a_gradient(name):
    model = build(name, backends_of(name)[1], dtype=torch.float32)
    model(TEXT).logsumexp(-1).sum().backward()
    for path, weight in model.named_parameters():
        assert weight.grad is not None, path
        assert weight.grad.abs().sum() > 0, path


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_gradients_are_the_same_with_activation_checkpointing(name, backend):
    found = []
    for checkpointing in (False, True):
        model = build(name, backend)
        model.activation_checkpointing = checkpointing
        model(TEXT).logsumexp(-1).sum().backward()
        found.append({path: weight.grad for path, weight in model.named_parameters()})
    plain, recomputed = found
    for path, gradient in plain.items():
        assert torch.equal(recomputed[path], gradient), path


@pytest.mark.parametrize(("name", "backend"), CASES)
@torch.no_grad()
def test_what_ran_is_what_was_asked_for(name, backend):
    model = build(name, backend, dtype=torch.float32)
    assert model.ran() == {}
    state = model.init_state(2, 90)
    model.prefill(TEXT[:, :8], state)
    model(TEXT[:, 8:9], state)
    ran = model.ran()
    assert ran["prefill"].split(":")[0] == backend
    assert ran["decode"].split(":")[0] == ("recurrent" if name.startswith("retnet") else backend)


def test_an_unknown_backend_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'chunkwise'"):
        build("retnet-fla", "chunkwize")


def test_a_backend_that_cannot_run_here_is_refused_with_the_reason():
    with pytest.raises(UnsupportedError, match="'flash' cannot run here: flash-attn runs on CUDA"):
        build("transformer", "flash")
