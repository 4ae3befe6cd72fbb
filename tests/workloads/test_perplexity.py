"""Perplexity as a workload: what stands in the record is what the documents come to."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retbench.data.corpora import load_corpus
from retbench.errors import ConfigError
from retbench.evaluation.perplexity import streamed_losses
from retbench.workloads import perplexity
from retbench.workloads.context import Context

from .quality import make_context

TEXTS = {f"{number}.txt": f"Document {number} says this. " * (4 * number + 3) for number in range(5)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a corpus of five documents."""
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).write_text(text, encoding="utf-8")
    return tmp_path


def context_of(folder: Path, name: str = "retnet", *, protocol: str = "whole", **evaluation: Any) -> Context:
    point = {"task": "texts", "protocol": protocol, "context_len": evaluation.pop("context_len", 4096)}
    if protocol == "strided":
        point["stride"] = 64
    corpus = load_corpus("texts", data_dir=folder)
    fields = {"split": "all", "corpus_fingerprint": corpus.fingerprint} | evaluation
    return make_context(folder, name, "perplexity", point, fields)


@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_metrics_are_those_of_the_documents(folder: Path, name: str) -> None:
    context = context_of(folder, name)
    found = perplexity.measure(context)
    nats = [
        float(streamed_losses(context.model, torch.tensor([[256, *text.encode()]])).double().sum())
        for text in TEXTS.values()
    ]
    num_bytes = sum(len(text.encode()) for text in TEXTS.values())
    words = sum(
        len(text.split()) + 1 for text in TEXTS.values()
    )  # as lm-eval: what follows the last blank counts
    assert [row["name"] for row in found.documents] == list(TEXTS)
    assert [row["nll_nats"] for row in found.documents] == pytest.approx(nats)
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values.pop("tokens_per_s") > 0
    assert values == pytest.approx(
        {
            "nats_per_token": sum(nats) / num_bytes,
            "bits_per_byte": sum(nats) / num_bytes / math.log(2),
            "word_perplexity": math.exp(sum(nats) / words),
            "num_documents": 5,
            "num_tokens": num_bytes,
            "num_bytes": num_bytes,
            "num_words": words,
        }
    )
    assert found.absent == {}
    assert found.backend == {"evaluation": "chunkwise" if name == "retnet" else "sdpa:flash"}


@pytest.mark.parametrize(("protocol", "context_len"), [("whole", 4096), ("strided", 128)])
def test_every_pass_is_reported(folder: Path, protocol: str, context_len: int) -> None:
    heard: list[int] = []
    context = replace(context_of(folder, protocol=protocol, context_len=context_len), report=heard.append)
    found = perplexity.measure(context)
    assert len(heard) >= len(TEXTS)
    assert sum(heard) >= found.metrics["num_tokens"].value


def test_the_loss_by_position_adds_up_to_the_whole(folder: Path) -> None:
    found = perplexity.measure(context_of(folder))
    series = found.series["loss_by_position"]
    assert (series.unit, series.x_name) == ("nats", "position")
    assert series.x[0] == 128
    assert sum(series.counts) == found.metrics["num_tokens"].value
    total = sum(y * count for y, count in zip(series.y, series.counts, strict=True))
    assert total / sum(series.counts) == pytest.approx(found.metrics["nats_per_token"].value)


def test_a_limit_takes_the_first_documents_and_a_cut_their_beginnings(folder: Path) -> None:
    found = perplexity.measure(context_of(folder, limit=2, max_document_tokens=30))
    assert [(row["name"], row["num_tokens"]) for row in found.documents] == [("0.txt", 30), ("1.txt", 30)]


def test_the_split_is_the_one_asked_for(folder: Path) -> None:
    names = {}
    for split in ("train", "validation", "test"):
        found = perplexity.measure(context_of(folder, split=split))
        names[split] = {row["name"] for row in found.documents}
    assert sorted(name for group in names.values() for name in group) == sorted(TEXTS)


def test_windows_have_no_positions(folder: Path) -> None:
    found = perplexity.measure(context_of(folder, protocol="strided", context_len=128))
    assert found.series == {}
    assert found.metrics["num_tokens"].value == sum(len(text) for text in TEXTS.values())


def test_what_is_no_text_of_its_own_has_no_bytes(folder: Path) -> None:
    (folder / "texts" / "long.txt").write_text("All happy families are alike. " * 150, encoding="utf-8")
    found = perplexity.measure(context_of(folder, protocol="last", context_len=512))
    assert found.absent.keys() == set(perplexity.IN_TEXT)
    assert "within a character" in found.absent["bits_per_byte"]
    assert found.metrics["num_tokens"].value == 2 * 128
    assert not found.metrics.keys() & set(perplexity.IN_TEXT)


def test_a_perplexity_that_is_no_number_is_absent_with_the_reason(folder: Path) -> None:
    for name in TEXTS:
        (folder / "texts" / name).unlink()
    (folder / "texts" / "one.txt").write_text("a" * 3000, encoding="utf-8")  # one word
    found = perplexity.measure(context_of(folder))
    assert "word_perplexity" not in found.metrics
    assert "too large a number" in found.absent["word_perplexity"]
    assert "bits_per_byte" in found.metrics


def test_a_corpus_that_changed_meanwhile_is_refused(folder: Path) -> None:
    context = context_of(folder)
    (folder / "texts" / "9.txt").write_text("One more.", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"'texts' has changed during the run: its fingerprint is .* and was "
    ):
        perplexity.measure(context)


def test_a_corpus_of_short_documents_is_named(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"corpus 'texts', split 'all': no document is long enough .* 'last'"
    ):
        perplexity.measure(context_of(folder, protocol="last", context_len=512))
