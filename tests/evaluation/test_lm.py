"""Our language model in lm-eval's eyes: texts are split, truncated, scored and continued as HFLM does."""

import math

import pytest
import torch
from lm_eval.api.instance import Instance

from retbench.data.tokenizers import load_tokenizer
from retbench.errors import ConfigError, UnsupportedError
from retbench.evaluation.lm import DecoderLM
from tests.evaluation.conftest import small_model

MARK = 256


def ask(kind, *arguments):
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@torch.no_grad()
def log_probability(model, context, scored):
    """Return the log-probability of tokens after others, by one pass."""
    logits = model(torch.tensor([[*context, *scored[:-1]]]))[0, -len(scored) :].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(scored)[:, None]).sum().item()


@pytest.mark.parametrize(
    ("context", "continuation", "before", "scored"),
    [
        ("Is it?", " yes", "Is it?", " yes"),
        ("Is it? ", "yes", "Is it?", " yes"),  # a trailing space belongs to what follows
        ("", "yes", "\0", "yes"),
    ],
)
def test_loglikelihood(byte_lm, context, continuation, before, scored):
    (found,) = byte_lm.loglikelihood([ask("loglikelihood", context, continuation)], disable_tqdm=True)
    start = [MARK] if before == "\0" else list(before.encode())
    assert found[0] == pytest.approx(log_probability(byte_lm.model, start, list(scored.encode())), rel=1e-5)


def test_a_first_token_mark_where_it_is_asked_for():
    model = small_model("llama")
    lm = DecoderLM(model, load_tokenizer("bytes"), max_length=64, add_bos=True)
    (found,) = lm.loglikelihood([ask("loglikelihood", "a", "bc")], disable_tqdm=True)
    assert found[0] == pytest.approx(log_probability(model, [MARK, ord("a")], list(b"bc")), rel=1e-5)


@pytest.mark.parametrize("add_bos", [False, True])
def test_rolling_in_disjoint_windows_with_one_token_of_context(add_bos):
    model = small_model("fla")
    lm = DecoderLM(model, load_tokenizer("bytes"), max_length=8, add_bos=add_bos)
    text = "twenty tokens, twice"
    tokens = list(text.encode())
    windows = [([MARK], tokens[:8]), (tokens[7:8], tokens[8:16]), (tokens[11:16], tokens[16:])]
    expected = sum(log_probability(model, *window) for window in windows)
    short, found = lm.loglikelihood_rolling([ask("loglikelihood_rolling", part) for part in ("ab", text)])
    assert found == pytest.approx(expected, rel=1e-5)
    assert short == pytest.approx(log_probability(model, [MARK], list(b"ab")), rel=1e-5)


def settings(**changes):
    return {"until": ["\n"], "max_gen_toks": 12, "do_sample": False, **changes}


@torch.no_grad()
def greedy_text(model, prompt, num_tokens):
    """By whole passes over bytes and the mark alone."""
    tokens = list(prompt.encode())
    for _ in range(num_tokens):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1, : MARK + 1].argmax()))
    return tokens[len(prompt) :]


def test_generation_is_greedy_whatever_the_batch(byte_lm):
    prompts = ["abcd", "efgh", "a much longer one", "x"]
    found = byte_lm.generate_until([ask("generate_until", prompt, settings(until=[])) for prompt in prompts])
    for prompt, text in zip(prompts, found, strict=True):
        expected = greedy_text(byte_lm.model, prompt, 12)
        expected = expected[: expected.index(MARK)] if MARK in expected else expected
        assert text == bytes(expected).decode("utf-8", "replace")


def test_generation_ends_before_its_stop(byte_lm):
    (whole,) = byte_lm.generate_until([ask("generate_until", "abcd", settings(until=[]))])
    stop = whole[3]
    (found,) = byte_lm.generate_until([ask("generate_until", "abcd", settings(until=[stop, "never"]))])
    assert found == whole[: whole.index(stop)]


def test_a_long_prompt_loses_its_start_and_is_counted(byte_lm):
    byte_lm.num_truncated = 0
    long = "y" * 600
    (cut,) = byte_lm.generate_until([ask("generate_until", long, settings(until=[]))])
    assert byte_lm.num_truncated == 1
    assert byte_lm.generate_until([ask("generate_until", long[:500], settings(until=[]))]) == [cut]
    assert byte_lm.num_truncated == 1


def test_sampling_is_refused(byte_lm):
    with pytest.raises(UnsupportedError, match="sampling"):
        byte_lm.generate_until([ask("generate_until", "a", settings(do_sample=True, temperature=1.0))])


def test_a_prompt_needs_room_beside_the_new_tokens(byte_lm):
    with pytest.raises(ConfigError, match="no room for a prompt beside 512"):
        byte_lm.generate_until([ask("generate_until", "a", settings(max_gen_toks=512))])


def test_a_continuation_longer_than_the_model_may_read(byte_lm):
    with pytest.raises(ConfigError, match="513 tokens is longer than max_length 512"):
        byte_lm.loglikelihood([ask("loglikelihood", "a", "b" * 513)], disable_tqdm=True)


class Joining:
    """A tokenizer that knows one piece more."""

    name, fingerprint, vocab_size, bos_token_id, eos_token_id = "joining", "0" * 12, 300, None, None

    def encode(self, text):
        return [299] if text == "ab" else list(text.encode())

    def decode(self, tokens):
        return bytes(tokens).decode()


def test_a_piece_over_the_join_leaves_nothing_to_score():
    lm = DecoderLM(small_model("llama"), Joining(), max_length=8)
    with pytest.raises(
        ConfigError, match="joins the end of the context 'a' with the whole of the continuation 'b'"
    ):
        lm.loglikelihood([ask("loglikelihood", "a", "b")], disable_tqdm=True)


def test_marks_that_a_tokenizer_does_not_have():
    lm = DecoderLM(small_model("llama"), Joining(), max_length=8)
    with pytest.raises(ConfigError, match="neither a begin-of-text nor an end-of-text token"):
        lm.loglikelihood_rolling([ask("loglikelihood_rolling", "abc")])
    with pytest.raises(ConfigError, match="no begin-of-text token"):
        DecoderLM(small_model("llama"), Joining(), max_length=8, add_bos=True)


def test_a_tokenizer_of_another_model(data_dir):
    with pytest.raises(ConfigError, match=r"50,257 tokens and the model's vocabulary only 1,024"):
        DecoderLM(small_model("llama"), load_tokenizer("gpt2", data_dir=data_dir), max_length=8)


def test_a_trained_model_prefers_its_stories(stories, stories_tokenizer):
    lm = DecoderLM(stories, stories_tokenizer, max_length=512, add_bos=True)
    story = "Once upon a time, there was a little girl named"
    found = lm.loglikelihood(
        [ask("loglikelihood", story, end) for end in (" Lily", " Xqz", " tuna")], disable_tqdm=True
    )
    assert found[0][1]
    assert found[0][0] > found[1][0] + math.log(100)
    (text,) = lm.generate_until([ask("generate_until", story, settings(max_gen_toks=8))])
    assert text.strip().startswith("Lily")
