"""A whole model: it is what the papers say, and decoding equals one pass, whatever the segments and the batch."""

from functools import cache

import pytest
import torch

from retbench.errors import ConfigError, UnsupportedError
from retbench.models.build import build_model
from retbench.models.equivalence import relative_error
from tests.models import plain_model
from tests.models.cases import CASES, backends_of, config_of

WITH_BACKENDS = [(case, backend) for case in CASES for backend in backends_of(case)]
TEXT = torch.randint(0, 256, (2, 90), generator=torch.Generator().manual_seed(0))


@cache
def config_of_two_layers(case):
    """Return the configuration of a case, with two layers where all layers are alike."""
    config = config_of(case)
    if len(config.blocks) > 1:
        return config
    return config.model_copy(update={"blocks": (config.blocks[0].model_copy(update={"count": 2}),)})


def build(case, backend, dtype=torch.float64):
    config = config_of_two_layers(case)
    return build_model(config, dtype=dtype, device="cpu", seed=3, backend=backend, chunk_size=16)


@torch.no_grad()
def build_weighty(case, backend):
    """Weights so large, and norms so uneven, that every part of a block shows in the logits."""
    model = build(case, backend)
    generator = torch.Generator().manual_seed(5)
    for weight in model.parameters():
        scale = weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.5
        weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype), alpha=scale)
    return model


@cache
def plain_logits(case):
    model = build_weighty(case, backends_of(case)[0])
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    return torch.from_numpy(plain_model.logits(weights, model.config, TEXT[0, :37].tolist()))


@pytest.mark.parametrize(("case", "backend"), WITH_BACKENDS)
@torch.no_grad()
def test_a_model_is_what_the_papers_say(case, backend):
    found = build_weighty(case, backend)(TEXT[:1, :37])
    assert relative_error(found[0], plain_logits(case)) < 1e-10


@pytest.mark.parametrize(("case", "backend"), WITH_BACKENDS)
@torch.no_grad()
def test_prefill_in_segments_then_decoding_equals_one_pass(case, backend):
    model = build_weighty(case, backend)
    expected = model(TEXT[:, :75])
    state = model.init_state(2, 75)
    logits = [model.prefill(TEXT[:, :61], state, segment_len=17)]
    logits += [model(TEXT[:, t : t + 1], state) for t in range(61, 75)]
    assert relative_error(torch.cat(logits, dim=1), expected[:, 60:]) < 1e-10


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_batch_gives_what_its_sequences_give_alone(case):
    model = build(case, backends_of(case)[1])
    together = model(TEXT)
    for row in range(2):
        assert relative_error(model(TEXT[row : row + 1]), together[row : row + 1]) < 1e-10


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_last_only_is_the_last_of_all(case):
    model = build_weighty(case, backends_of(case)[1])
    assert relative_error(model(TEXT, last_only=True), model(TEXT)[:, -1:]) < 1e-12


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_weight_gets_a_gradient(case, last_only):
    model = build(case, backends_of(case)[1], dtype=torch.float32)
    model(TEXT, last_only=last_only).logsumexp(-1).sum().backward()
    for path, weight in model.named_parameters():
        assert weight.grad is not None, path
        assert weight.grad.abs().sum() > 0, path


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_same_with_activation_checkpointing(case):
    found, model = [], build(case, backends_of(case)[1])
    for checkpointing in (False, True):
        model.zero_grad()
        model.activation_checkpointing = checkpointing
        model(TEXT[:, :40]).logsumexp(-1).sum().backward()
        found.append({path: weight.grad for path, weight in model.named_parameters()})
    plain, recomputed = found
    for path, gradient in plain.items():
        assert torch.equal(recomputed[path], gradient), path


@pytest.mark.parametrize(("case", "backend"), WITH_BACKENDS)
@torch.no_grad()
def test_what_ran_is_what_was_asked_for(case, backend):
    model = build(case, backend, dtype=torch.float32)
    assert model.executed_backends() == {}
    state = model.init_state(2, 90)
    model.prefill(TEXT[:, :8], state)
    model(TEXT[:, 8:9], state)
    ran = model.executed_backends()
    asked = set(backend.split("+"))
    prefill, decode = (
        {kernel.split(":")[0] for kernel in ran[phase].split("+")} for phase in ("prefill", "decode")
    )
    if "products" in asked:  # of a single query, which the last block of a prefill has
        assert prefill in (asked, asked | {"sdpa"})
    else:
        assert prefill == asked
    steps = {"retention": "recurrent", "window_attention": "ring", "latent_attention": "absorbed"}
    expected = {steps.get(mixer.config.mixer, mixer.backend) for mixer in model.mixers}
    assert decode == expected


def test_an_unknown_backend_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'chunkwise'"):
        build("fla", "chunkwize")


def test_a_backend_that_cannot_run_here_is_refused_with_the_reason():
    with pytest.raises(UnsupportedError, match="'flash' cannot run here: flash-attn runs on CUDA"):
        build("llama", "flash")
