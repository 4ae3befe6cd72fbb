import math
import unicodedata
from collections.abc import Sequence

import pytest
import torch

from retbench.architectures.matching import resolve_model
from retbench.architectures.retnet import RetNetSpec
from retbench.data.corpora import Document
from retbench.data.tokenizers import ByteTokenizer, load_tokenizer
from retbench.errors import ConfigError
from retbench.evaluation.perplexity import PerplexitySetup, cut_tokens, score_corpus, streamed_losses
from retbench.models.build import build_model
from retbench.models.decoder import Decoder

BYTES = load_tokenizer("bytes")
TEXTS = ["It was the best of times,\nit was the worst of times.", "Zoë ate 3 crêpes. " * 40, "", "x"]
DOCUMENTS = [Document(f"{number}.txt", text) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model() -> Decoder:
    config = resolve_model(RetNetSpec(architecture="retnet"), "300k", vocab_size=BYTES.vocab_size)
    return build_model(config, dtype=torch.float32, device="cpu", seed=1, backend="chunkwise")


def test_counts_and_sums_are_those_of_the_texts(model: Decoder) -> None:
    found = score_corpus(model, BYTES, DOCUMENTS, PerplexitySetup("whole", 4096))
    assert [document.name for document in found.documents] == ["0.txt", "1.txt", "3.txt"]
    for document, text in zip(found.documents, (text for text in TEXTS if text), strict=True):
        assert document.num_tokens == document.num_bytes == len(text.encode())
        assert document.num_words == len(text.split()) + (1 if text.endswith(" ") else 0)
        row = torch.tensor([[256, *text.encode()]])
        assert document.nll_nats == pytest.approx(float(streamed_losses(model, row).double().sum()), rel=1e-9)
    assert found.nll_nats == pytest.approx(sum(document.nll_nats for document in found.documents))
    assert found.num_tokens == sum(found.bucket_tokens)
    assert found.nll_nats == pytest.approx(math.fsum(found.bucket_nats), rel=1e-9)
    assert found.bucket_ends == (128, 256, 512, len(TEXTS[1].encode()))


def test_a_document_is_read_no_further_than_the_context(model: Decoder) -> None:
    found = score_corpus(model, BYTES, DOCUMENTS[:1], PerplexitySetup("whole", 10))
    assert found.documents[0].num_tokens == 10
    whole = score_corpus(model, BYTES, [Document("a", TEXTS[0][:10])], PerplexitySetup("whole", 99))
    assert found.nll_nats == pytest.approx(whole.nll_nats)


class Composing(ByteTokenizer):
    """Bytes of the text after NFC, as GPT-NeoX's tokenizer reads it."""

    def _encode(self, text: str) -> list[int]:
        return super()._encode(unicodedata.normalize("NFC", text))


def test_bytes_are_those_of_the_text_and_not_of_what_the_tokenizer_makes_of_it(model: Decoder) -> None:
    document = Document("nfd.txt", "two cafe\u0301s")
    (whole,) = score_corpus(model, Composing(), [document], PerplexitySetup("whole", 99)).documents
    assert (whole.num_tokens, whole.num_bytes, whole.num_words) == (10, 11, 2)
    (cut,) = score_corpus(model, Composing(), [document], PerplexitySetup("whole", 9)).documents
    assert (cut.num_tokens, cut.num_bytes, cut.num_words) == (9, None, None)
    (plain,) = score_corpus(model, Composing(), [document], PerplexitySetup("whole", 6)).documents
    assert (plain.num_tokens, plain.num_bytes, plain.num_words) == (6, 6, 2)


@pytest.mark.parametrize("length", range(1, 12))
def test_a_text_is_never_cut_within_a_character(length: int) -> None:
    tokens = BYTES.encode("Zoë’s 🦜 é")
    kept = cut_tokens(BYTES, tokens, length)
    assert length - 3 <= len(kept) <= length
    assert "\ufffd" not in BYTES.decode(kept)


def test_every_protocol_scores_the_same_tokens_where_the_text_is_short(model: Decoder) -> None:
    whole = score_corpus(model, BYTES, DOCUMENTS, PerplexitySetup("whole", 4096))
    strided = score_corpus(model, BYTES, DOCUMENTS, PerplexitySetup("strided", 4096, stride=2048))
    assert strided.nll_nats == pytest.approx(whole.nll_nats, rel=1e-6)
    assert strided.bucket_ends == ()


def test_the_last_tokens_have_no_bytes_of_their_own(model: Decoder) -> None:
    long = Document("long", "All happy families are alike. " * 150)
    found = score_corpus(model, BYTES, [long, *DOCUMENTS], PerplexitySetup("last", 512))
    assert [document.name for document in found.documents] == ["long"]
    assert found.num_tokens == 128 * (len(long.text) // 2048)
    assert found.num_bytes is None
    assert found.num_words is None


def test_nothing_to_score_is_an_error(model: Decoder) -> None:
    with pytest.raises(
        ConfigError, match=r"no document is long enough for the protocol 'last' at context_len 512"
    ):
        score_corpus(model, BYTES, DOCUMENTS, PerplexitySetup("last", 512))


def test_a_tokenizer_that_does_not_fit_is_refused(model: Decoder) -> None:
    class Wider:
        name, fingerprint, vocab_size, bos_token_id, eos_token_id = "wider", "0", 300, 1, 1

        def encode(self, text: str) -> list[int]:
            return [1]

        def decode(self, tokens: Sequence[int]) -> str:
            return ""

    with pytest.raises(ConfigError, match="'wider' has 300 tokens and the model's vocabulary only 257"):
        score_corpus(model, Wider(), DOCUMENTS, PerplexitySetup("whole", 64))
