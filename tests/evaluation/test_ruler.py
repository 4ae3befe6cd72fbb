"""RULER's needles as lm-eval generates them: any tokenizer, the same prompts every time, and no answer that is cut."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from retbench.data.tokenizers import load_tokenizer
from retbench.errors import ConfigError, UnsupportedError
from retbench.evaluation import ruler
from retbench.evaluation.lm import DecoderLM
from retbench.evaluation.tasks import check_task, load_task, task_rows
from retbench.evaluation.zeroshot import evaluate

BYTES = load_tokenizer("bytes")
NEEDLES = ("niah_single_1", "niah_single_2", "niah_single_3")


def get_tokenizer(name: object) -> Any:
    raise AssertionError(f"lm-eval must not read the tokenizer {name} itself")


def prompts(**settings: Any) -> dict[str, Any]:
    """Stand in for lm-eval's generator, whose word list takes half a gigabyte."""
    (length,) = settings["max_seq_lengths"]
    if length < 100:
        raise ValueError("Could not generate any sample")
    return {"tokens": get_tokenizer(None)("abc").input_ids, "drawn": random.random()}


def result(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"4096": -1.0, str(doc["max_length"]): float(doc["outputs"][0] in results[0])}


CONFIG = {"task": "niah_single_1", "custom_dataset": prompts, "process_results": result}


def test_prompts_are_fitted_by_the_models_tokenizer_and_do_not_depend_on_what_was_drawn_before() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    made = [ruler.generate(CONFIG, BYTES, 512)["custom_dataset"]() for _ in range(2)]
    assert made[0] == made[1]
    assert made[0]["tokens"] == [97, 98, 99]
    assert random.random() == expected


def test_the_metric_has_one_name_at_every_length() -> None:
    made = ruler.generate(CONFIG, BYTES, 512)
    doc = {"max_length": 512, "outputs": ["1234567"]}
    assert made["process_results"](doc, [" 1234567."]) == {"contains": 1.0}
    assert made["process_results"](doc, [" 7654321."]) == {"contains": 0.0}
    assert [metric["metric"] for metric in made["metric_list"]] == ["contains"]


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fits into 64 tokens of 'bytes'\. Ask for a longer context_len"):
        ruler.generate(CONFIG, BYTES, 64)


@pytest.mark.parametrize("name", NEEDLES)
def test_without_its_packages_a_task_is_refused_with_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ruler, "find_spec", lambda package: None if package == "wonderwords" else package)
    with pytest.raises(UnsupportedError, match=rf"{name}: .*wonderwords.*pip install 'retbench\[recall\]'"):
        check_task(name, num_fewshot=0)
    assert "retbench[recall]" in {row: where for row, _, where in task_rows()}[name]


def test_essays_need_the_hub_and_the_repeated_sentence_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ruler, "find_spec", lambda package: package)
    check_task("niah_single_1", num_fewshot=0)
    for name in NEEDLES[1:]:
        with pytest.raises(UnsupportedError, match=rf"{name}: .*paul_graham_essays.*HF_HUB_OFFLINE"):
            check_task(name, num_fewshot=0)
    with pytest.raises(ConfigError, match="takes no examples"):
        check_task("niah_single_1", num_fewshot=1)


def test_texts_that_cannot_be_downloaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk", reason="the extra recall is not installed")
    monkeypatch.setattr(nltk, "download", lambda *_: False)
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setitem(prompts.__globals__, "get_haystack", lambda **_: None)
    with pytest.raises(
        UnsupportedError, match=r"niah_single_2: .*paul_graham_essays.*punkt_tab.*cannot be had"
    ):
        ruler.generate(CONFIG | {"task": "niah_single_2"}, BYTES, 512)


def test_a_prompt_that_would_be_cut_is_an_error(byte_lm: DecoderLM) -> None:
    lm = DecoderLM(byte_lm.model, byte_lm.tokenizer, max_length=64, truncates=False)
    settings = {"until": [], "max_gen_toks": 4, "do_sample": False}
    (found,) = lm.generate_until([Instance("generate_until", {}, ("a" * 60, settings), 0)])
    assert found
    with pytest.raises(ConfigError, match=r"61 tokens and 4 new ones take more than max_length 64"):
        lm.generate_until([Instance("generate_until", {}, ("a" * 61, settings), 0)])


@pytest.fixture(scope="module")
def needles() -> Any:
    for package in ("nltk", "wonderwords", "transformers"):
        pytest.importorskip(package, reason="the extra recall is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return load_task("niah_single_1", tokenizer=BYTES, context_len=1024)


@pytest.mark.slow
def test_lm_evals_own_prompts(needles: Any) -> None:
    """Compare with lm-eval's generator, called as by its command, with the same tokenizer."""
    from lm_eval.tasks.ruler import niah_utils

    def count(text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=BYTES.encode(text))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(niah_utils, "get_tokenizer", lambda _: count)
        random.seed(0)
        theirs = niah_utils.niah_single_1(max_seq_lengths=[1024], tokenizer="bytes")["test"]
    assert list(needles.task.eval_docs) == list(theirs)
    assert (needles.data_source, needles.split, len(theirs)) == ("generated", "test", 500)
    for row in theirs:
        assert row["length"] <= 1024
        assert row["outputs"][0] in row["input"]


@pytest.mark.slow
def test_answers_are_generated_and_kept(needles: Any, byte_lm: DecoderLM) -> None:
    length = 1024 + needles.extra_tokens
    lm = DecoderLM(byte_lm.model, byte_lm.tokenizer, max_length=length, truncates=False)
    found = evaluate(lm, needles, limit=2)
    assert found.num_truncated == 0
    for document in found.documents:
        value = document.target.strip("[']")
        assert document.text is not None
        assert document.metrics == {"contains": float(value in document.text)}
        assert document.loglikelihoods == document.is_greedy == ()
    assert found.metrics["contains"].value == sum(d.metrics["contains"] for d in found.documents) / 2
