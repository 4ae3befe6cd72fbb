"""Text token by token: what is chosen, how often, and that it is what the whole model says."""

import math
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retbench.errors import ConfigError, RetbenchError
from retbench.models.build import build_model
from retbench.models.generation import Sampling, choose_token, generate, token_probabilities
from tests.models.cases import config_of

PROMPT = torch.randint(0, 256, (1, 13), generator=torch.Generator().manual_seed(1))
LOGITS = torch.tensor([0.5, 3.0, -1.0, 2.0, 2.5])


@pytest.fixture(scope="module", params=["fla", "torchscale", "llama-grouped-query"])
def model(request):
    model = build_model(
        config_of(request.param),
        dtype=torch.float64,
        device="cpu",
        seed=3,
        backend="sdpa" if request.param.startswith("llama") else "chunkwise",
    )
    with torch.no_grad():  # logits far enough apart that the most probable token is never in doubt
        model.head.weight.normal_(0, 1, generator=torch.Generator().manual_seed(2))
    return model


@torch.no_grad()
def test_greedy_tokens_are_those_of_whole_passes(model):
    text = PROMPT
    for token in generate(model, PROMPT, max_tokens=12):
        assert token == int(model(text)[0, -1].argmax())
        text = torch.cat([text, torch.tensor([[token]])], dim=1)
    assert text.shape == (1, 25)


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(model):
    tokens = list(generate(model, PROMPT, max_tokens=12))
    last = tokens[7]
    assert list(generate(model, PROMPT, max_tokens=12, stop={last})) == tokens[: tokens.index(last)]


def test_tokens_come_one_by_one(model):
    seen = []
    handle = model.register_forward_hook(lambda *_: seen.append("pass"))
    try:
        for _ in generate(model, PROMPT, max_tokens=4):
            seen.append("token")  # noqa: PERF401 - the order is what is tested
    finally:
        handle.remove()
    assert seen == ["pass", "token"] * 4


def test_the_callers_gradients_are_left_alone_between_tokens(model):
    for _ in generate(model, PROMPT, max_tokens=2):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_the_same_seed_gives_the_same_text_and_another_another(model):
    def draw(seed):
        return list(generate(model, PROMPT, max_tokens=30, sampling=Sampling(temperature=2.0), seed=seed))

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_only_tokens_of_the_tokenizer_are_chosen(model):
    free = list(generate(model, PROMPT, max_tokens=20))
    bound = list(generate(model, PROMPT, max_tokens=20, num_tokens=max(free)))
    assert max(bound) < max(free)


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ConfigError, match="no tokens"):
        next(generate(model, PROMPT[:, :0], max_tokens=1))


def test_logits_that_are_no_numbers_end_it():
    model = build_model(config_of("fla"), dtype=torch.float32, device="cpu", seed=1, backend="chunkwise")
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    with pytest.raises(
        RetbenchError, match=r"position 12 are not finite at torch\.float32.* Check its weights"
    ):
        next(generate(model, PROMPT, max_tokens=1))


def test_probabilities_by_hand():
    exps = [math.exp(value / 0.5) for value in (3.0, 2.5, 2.0)]
    found = token_probabilities(LOGITS, Sampling(temperature=0.5, top_k=3))
    expected = [0, exps[0] / sum(exps), 0, exps[2] / sum(exps), exps[1] / sum(exps)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_top_p_keeps_the_token_that_reaches_it():
    probabilities = LOGITS.softmax(0)  # .05, .48, .01, .18, .29 or so
    just_under = float(probabilities[1] + probabilities[4]) - 1e-4
    kept = token_probabilities(LOGITS, Sampling(temperature=1.0, top_p=just_under)).nonzero().flatten()
    assert kept.tolist() == [1, 4]
    just_over = just_under + 2e-4
    kept = token_probabilities(LOGITS, Sampling(temperature=1.0, top_p=just_over)).nonzero().flatten()
    assert kept.tolist() == [1, 3, 4]


@pytest.mark.parametrize("least", [1e-46, 1e-300], ids=str)
@pytest.mark.parametrize("settings", [{"temperature": 1.0, "top_p": 0.0}, {"temperature": 0.0}], ids=str)
def test_values_below_the_dtype_draw_the_likeliest_token(settings, least):
    tiny = {name: value or least for name, value in settings.items()}
    found = token_probabilities(1000 * LOGITS, Sampling(**tiny))
    assert found.tolist() == [0, 1, 0, 0, 0]


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40),
    temperature=st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 50),
    top_p=st.none() | st.floats(0.01, 1),
)
def test_some_token_can_always_be_drawn_and_the_likeliest_is_among_them(logits, temperature, top_k, top_p):
    values = torch.tensor(logits)
    found = token_probabilities(values, Sampling(temperature, top_k, top_p))
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    scaled = values / temperature  # which rounds, so that several may be the likeliest
    assert float(found[scaled == scaled.max()].max()) == pytest.approx(float(found.max()))
    assert int((found > 0).sum()) <= (top_k or len(logits))


def test_draws_are_as_frequent_as_their_probability():
    sampling = Sampling(temperature=1.5, top_k=4, top_p=0.95)
    expected = token_probabilities(LOGITS, sampling)
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([choose_token(LOGITS, sampling, generator) for _ in range(4000)])
    counts = torch.bincount(draws, minlength=5)
    assert (counts[expected == 0] == 0).all()
    deviation = (expected * (1 - expected) / 4000).sqrt()
    assert ((counts / 4000 - expected).abs() <= 4 * deviation).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": 1.0, "top_k": 0}, "top-k 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top-p 0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top-p 1.5"),
        ({"top_k": 5}, "nothing is drawn"),
        ({"top_p": 0.9}, "nothing is drawn"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**settings)


@pytest.mark.peers
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(1, 60),
    top_p=st.floats(0.05, 0.99),
)
def test_probabilities_are_those_of_transformers(seed, temperature, top_k, top_p):
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = 4 * torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)]
    )
    expected = warpers(torch.zeros(1, 1, dtype=torch.int64), logits[None].clone()).softmax(-1)[0]
    found = token_probabilities(logits, Sampling(temperature, top_k, top_p))
    torch.testing.assert_close(found, expected)
