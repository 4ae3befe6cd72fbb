import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retbench.architectures.matching import resolve_model
from retbench.architectures.retnet import RetNetSpec
from retbench.architectures.transformer import TransformerSpec
from retbench.evaluation.perplexity import last_losses, streamed_losses, strided_losses, windows
from retbench.models.build import build_model
from retbench.models.decoder import Decoder

SPECS = {
    "retnet": RetNetSpec(architecture="retnet", backend="chunkwise"),
    "transformer": TransformerSpec(architecture="transformer"),
}


@pytest.fixture(scope="module", params=SPECS)
def model(request: pytest.FixtureRequest) -> Decoder:
    spec = SPECS[request.param]
    config = resolve_model(spec, "300k")
    return build_model(config, dtype=torch.float32, device="cpu", seed=1, backend=spec.backend)


def draw(*shape: int) -> Tensor:
    return torch.randint(1024, shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def in_one_pass(model: Decoder, tokens: Tensor) -> Tensor:
    """The obvious way: all logits, then the losses."""
    return F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")


@pytest.mark.parametrize("segment_len", [1, 7, 64, 500])
def test_a_streamed_text_costs_what_it_costs_in_one_pass(model: Decoder, segment_len: int) -> None:
    tokens = draw(2, 131)
    torch.testing.assert_close(
        streamed_losses(model, tokens, segment_len=segment_len),
        in_one_pass(model, tokens),
        rtol=1e-5,
        atol=1e-5,
    )


@given(
    length=st.integers(1, 200),
    window_len=st.integers(2, 50),
    stride=st.integers(1, 50),
)
def test_windows_score_every_token_but_the_first_once(length: int, window_len: int, stride: int) -> None:
    stride = min(stride, window_len - 1)
    scored = [
        position
        for start, end, count in windows(length, window_len, stride)
        for position in range(end - count, end)
    ]
    assert scored == list(range(1, length))
    for start, end, count in windows(length, window_len, stride):
        assert end - start <= window_len
        assert end - count > start  # something stands before what is scored
        assert start == 0 or end - count - start >= window_len - stride


def test_a_window_over_the_whole_text_is_the_whole_text(model: Decoder) -> None:
    tokens = draw(90)
    torch.testing.assert_close(
        strided_losses(model, tokens, context_len=100, stride=50), streamed_losses(model, tokens[None])[0]
    )


def test_a_strided_token_is_given_its_window_and_no_more(model: Decoder) -> None:
    tokens = draw(100)
    found = strided_losses(model, tokens, context_len=40, stride=20)
    expected = in_one_pass(model, tokens[None, :41])[0]
    torch.testing.assert_close(found[:40], expected, rtol=1e-5, atol=1e-5)
    second = in_one_pass(model, tokens[None, 20:61])[0]
    torch.testing.assert_close(found[40:60], second[-20:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context_len", [48, 64])
def test_the_last_tokens_of_a_chunk_see_their_context(model: Decoder, context_len: int) -> None:
    tokens = draw(150)  # two chunks of 64, and a rest that is left out
    found = last_losses(model, tokens, chunk_len=64, context_len=context_len, scored_len=16)
    assert found.shape == (2, 16)
    seen = tokens[64 + 64 - context_len : 128]
    torch.testing.assert_close(found[1], in_one_pass(model, seen[None])[0, -16:], rtol=1e-5, atol=1e-5)
    assert last_losses(model, tokens[:60], chunk_len=64, context_len=48, scored_len=16).shape == (0, 16)


def test_losses_of_a_bf16_model_are_float32() -> None:
    config = resolve_model(SPECS["retnet"], "300k")
    model = build_model(config, dtype=torch.bfloat16, device="cpu", seed=1, backend="chunkwise")
    assert streamed_losses(model, draw(1, 20)).dtype == torch.float32


class GivenLogits:
    """A model whose logits are given, one vocabulary per token."""

    device = torch.device("cpu")

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def init_state(self, batch_size: int, capacity: int) -> None:
        """There is none."""

    def __call__(self, tokens: Tensor, state: None) -> Tensor:
        return self.logits[: tokens.shape[0], : tokens.shape[1]]


def test_the_sum_over_a_large_vocabulary_is_that_of_float64() -> None:
    vocab_size = 262_144
    logits = 2 * torch.randn(2, 24, vocab_size, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(vocab_size, (2, 25), generator=torch.Generator().manual_seed(1))
    found = streamed_losses(GivenLogits(logits), tokens)  # type: ignore[arg-type]
    expected = -logits.double().log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    assert float(found.double().sum()) == pytest.approx(float(expected.sum()), rel=1e-6)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)
