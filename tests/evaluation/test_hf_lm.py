"""Scores of a model of transformers: those of lm-eval's HFLM, request by request."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from retbench.checkpoints.loading import load_model
from retbench.checkpoints.reading import read_checkpoint
from retbench.data.corpora import Document
from retbench.data.tokenizers import load_tokenizer
from retbench.evaluation.lm import DecoderLM
from retbench.evaluation.perplexity import PerplexitySetup, score_corpus
from retbench.models.hf import HfModel
from tests.models.hf_models import save_hf_model

pytestmark = pytest.mark.peers
pytest.importorskip("transformers")

STEM = "A state of fixed size is read and written at every token, and a cache grows with the text. "
PAIRS = [(STEM, "It is faster."), (STEM, "It is slower than that."), ("Short.", "Yes"), (STEM + STEM, "No.")]


@pytest.fixture(scope="module", params=["llama", "gemma2", "mamba"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HfModel:
    folder: Path = save_hf_model(request.param, tmp_path_factory.mktemp(request.param))
    info = read_checkpoint(str(folder), format="hf")
    found = load_model(info, dtype=torch.float32, device="cpu", backend="default")
    assert isinstance(found, HfModel)
    return found


def instances(pairs: list[tuple[str, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


def test_log_likelihoods_are_those_of_hflm(model: HfModel) -> None:
    from lm_eval.models.huggingface import HFLM

    from benchmarks.eval.hf_lm import OurTokenizer
    from retbench.evaluation.tasks import quiet

    tokenizer = load_tokenizer("bytes")
    with quiet():
        theirs = HFLM(
            pretrained=model.inner,
            tokenizer=OurTokenizer(tokenizer),
            max_length=256,
            batch_size=1,
            device="cpu",
            backend="causal",
        )
    ours = DecoderLM(model, tokenizer, max_length=256)
    found = ours.loglikelihood(instances(PAIRS), disable_tqdm=True)
    expected = theirs.loglikelihood(instances(PAIRS), disable_tqdm=True)
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_the_perplexity_of_a_document_is_that_of_one_pass(model: HfModel) -> None:
    tokenizer = load_tokenizer("bytes")
    setup = PerplexitySetup("whole", context_len=100)
    found = score_corpus(model, tokenizer, [Document("one", STEM + STEM)], setup)
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    tokens = torch.tensor([[begin, *tokenizer.encode(STEM + STEM)[:100]]])
    with torch.inference_mode():
        logits = model.inner(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    losses = -logits.log_softmax(-1).gather(2, tokens[:, 1:, None])
    assert math.isclose(found.nll_nats, float(losses.sum()), rel_tol=1e-5)
