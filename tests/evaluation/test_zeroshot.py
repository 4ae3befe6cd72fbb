"""Scores of real tasks: lm-eval's metrics, the same however requests are batched, traceable to their documents."""

import math
from functools import cache

import pytest
from lm_eval.api.metrics import mean_stderr

from retbench.evaluation.lm import DecoderLM
from retbench.evaluation.tasks import load_task
from retbench.evaluation.zeroshot import evaluate

REQUESTS = {"hellaswag": 4, "piqa": 2, "winogrande": 2, "lambada_openai": 1, "boolq": 2}

load = cache(load_task)
"""Reads the rows of a task once: those of HellaSwag take seconds."""


@pytest.fixture(scope="module")
def stories_lm(stories, stories_tokenizer):
    return DecoderLM(stories, stories_tokenizer, max_length=512, add_bos=True)


@pytest.mark.parametrize("task", REQUESTS)
def test_batched_and_shared_equals_one_at_a_time(task, byte_lm, data_dir):
    loaded = load(task, data_dir=data_dir, num_fewshot=1)
    alone = DecoderLM(byte_lm.model, byte_lm.tokenizer, max_length=512, batch_tokens=1, min_saved=None)
    found, expected = (evaluate(lm, loaded, limit=4) for lm in (byte_lm, alone))
    assert found.prompts_fingerprint == expected.prompts_fingerprint
    for one, other in zip(found.documents, expected.documents, strict=True):
        assert one.loglikelihoods == pytest.approx(other.loglikelihoods, rel=1e-4)
        assert (one.doc_hash, one.prompt_hash, one.metrics.keys()) == (
            other.doc_hash,
            other.prompt_hash,
            other.metrics.keys(),
        )
    assert len(found.documents) == 4
    assert found.num_requests == 4 * REQUESTS[task]
    assert expected.num_input_tokens == expected.num_computed_tokens == found.num_input_tokens


def test_a_trained_model_on_hellaswag(stories_lm, data_dir):
    found = evaluate(stories_lm, load("hellaswag", data_dir=data_dir), limit=20)
    assert found.loaded.entry.metric == "acc_norm"
    assert [document.doc_id for document in found.documents] == list(range(20))
    for document in found.documents:
        right = document.loglikelihoods.index(max(document.loglikelihoods)) == int(document.target)
        assert document.metrics["acc"] == right
    correct = [document.metrics["acc"] for document in found.documents]
    value, stderr, higher_is_better = found.metrics["acc"]
    assert value == sum(correct) / 20
    assert stderr == pytest.approx(mean_stderr(correct))
    assert higher_is_better
    assert found.num_computed_tokens < 0.75 * found.num_input_tokens
    assert (found.loaded.split, found.loaded.data_source) == ("validation", "local")


def test_lambada_has_perplexity_and_the_greedy_word(stories_lm, data_dir):
    found = evaluate(stories_lm, load("lambada_openai", data_dir=data_dir), limit=30)
    totals = [document.loglikelihoods[0] for document in found.documents]
    perplexity = found.metrics["perplexity"]
    assert perplexity.value == pytest.approx(math.exp(-sum(totals) / 30))
    assert not perplexity.higher_is_better
    # exp is convex, so half the difference over one standard error up and down is about the delta method's.
    spread = mean_stderr(totals)
    assert perplexity.stderr == pytest.approx(perplexity.value * math.sinh(spread), rel=spread)
    assert [document.metrics["acc"] for document in found.documents] == [
        d.is_greedy[0] for d in found.documents
    ]


def test_wikitext_by_word_and_byte(stories_lm, data_dir):
    found = evaluate(stories_lm, load("wikitext", data_dir=data_dir), limit=3)
    totals = [document.loglikelihoods[0] for document in found.documents]
    num_bytes = [document.metrics["bits_per_byte"][1] for document in found.documents]
    bits = found.metrics["bits_per_byte"]
    assert bits.value == pytest.approx(-sum(totals) / sum(num_bytes) / math.log(2))
    assert found.metrics["byte_perplexity"].value == pytest.approx(2**bits.value)
    assert found.metrics["byte_perplexity"].stderr == pytest.approx(
        found.metrics["byte_perplexity"].value * math.log(2) * bits.stderr
    )
    ratios = [-total / count / math.log(2) for total, count in zip(totals, num_bytes, strict=True)]
    assert 0 < bits.stderr < max(ratios) - min(ratios)


def test_one_document_has_no_standard_error(byte_lm, data_dir):
    assert evaluate(byte_lm, load("copa", data_dir=data_dir), limit=1).metrics["acc"].stderr is None


def test_what_was_asked_is_in_the_fingerprint(byte_lm, data_dir):
    def fingerprint(**changes):
        return evaluate(byte_lm, load("copa", data_dir=data_dir, **changes), limit=5).prompts_fingerprint

    assert fingerprint(num_fewshot=2) == fingerprint(num_fewshot=2) != fingerprint(num_fewshot=2, seed=1)
    assert len({fingerprint(), fingerprint(num_fewshot=1), fingerprint(num_fewshot=2)}) == 3


def test_a_task_scored_twice_asks_the_same_questions(byte_lm, data_dir):
    loaded = load("copa", data_dir=data_dir, num_fewshot=2)
    assert evaluate(byte_lm, loaded, limit=5) == evaluate(byte_lm, loaded, limit=5)


def test_truncated_requests_are_counted(byte_lm, data_dir):
    found = evaluate(byte_lm, load("boolq", data_dir=data_dir), limit=5)
    assert 0 < found.num_truncated < found.num_requests
    assert evaluate(byte_lm, load("copa", data_dir=data_dir), limit=5).num_truncated == 0


def test_data_that_makes_other_prompts_than_the_hubs_is_said(byte_lm, data_dir):
    assert "title" in evaluate(byte_lm, load("boolq", data_dir=data_dir), limit=1).loaded.data_note
