"""Recall in text as a workload: metrics are those of the documents, and inputs say what was counted where."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retbench.config.evaluation import RecallSlicesSpec
from retbench.data.corpora import load_corpus
from retbench.data.tokenizers import load_tokenizer
from retbench.errors import ConfigError
from retbench.planning.cells import Cell, SlicedText, Weights
from retbench.records.record import WeightsInfo
from retbench.workloads import recall_slices
from retbench.workloads.context import Context

from .quality import BYTES, make_context

TEXTS = {
    f"{number}.txt": f"Miss Vale{number} met Tom. Then Miss Vale{number} left; so did Miss Vale{number} too. "
    * 2
    for number in range(12)
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a corpus of twelve documents, and one in which their pairs are counted."""
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))
    for corpus, texts in (
        ("texts", TEXTS),
        ("others", {f"{n}.txt": "Then Miss Vale0 sat" for n in range(4)}),
    ):
        (tmp_path / corpus).mkdir()
        for name, text in texts.items():
            (tmp_path / corpus / name).write_text(text, encoding="utf-8")
    return tmp_path


def context_of(folder: Path, name: str, counted_in: str | None) -> Context:
    fingerprint = load_corpus("texts", data_dir=folder).fingerprint
    context = make_context(folder, name, "recall_slices", {"task": "texts", "context_len": 128}, None)
    counted = None if counted_in is None else load_corpus(counted_in, data_dir=folder).fingerprint
    evaluation = SlicedText(
        split="all",
        limit=11,
        tokenizer="bytes",
        tokenizer_fingerprint=BYTES.fingerprint,
        corpus_fingerprint=fingerprint,
        counted_in=counted_in,
        counted_in_fingerprint=counted,
        max_count=0,
    )
    return replace(context, cell=context.cell.model_copy(update={"evaluation": evaluation}))


@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_metrics_are_those_of_the_documents(folder: Path, name: str) -> None:
    heard: list[int] = []
    found = recall_slices.measure(replace(context_of(folder, name, "others"), report=heard.append))
    values = {metric: each.value for metric, each in found.metrics.items()}
    rows = found.documents
    assert len(rows) == 11
    hits, nats = (sum(row[field] for row in rows) for field in ("num_hits", "hit_nats"))
    assert values["num_hits"] == hits > 0
    assert values["hit_nats"] == pytest.approx(nats / hits)
    copied = sum(row["copied_bytes"] for row in rows)
    second = sum(row["second_copy_nats"] for row in rows)
    assert values["second_copy_bits_per_byte"] == pytest.approx(second / copied / math.log(2))
    gain = sum(row["gain_nats"] for row in rows)
    assert values["hit_gain_nats"] == pytest.approx(gain / hits)
    assert sum(heard) == sum(row["num_tokens"] + 2 * row["copied_bytes"] + 2 for row in rows)
    series = found.series["hit_gain_by_distance"]
    assert sum(series.counts) == hits
    assert set(found.series["hit_gain_by_distance_low"].x) <= set(series.x)
    assert found.absent == {}


def test_pairs_of_the_counted_corpus_are_left_out(folder: Path) -> None:
    counted = recall_slices.measure(context_of(folder, "retnet", "others")).documents
    alone = recall_slices.measure(context_of(folder, "retnet", None)).documents
    by_name = {row["name"]: row["num_hits"] for row in alone}
    assert [row["num_hits"] for row in counted if row["name"] == "0.txt"] == [by_name["0.txt"] - 2]
    assert all(row["num_hits"] >= by_name[row["name"]] for row in counted if row["name"] != "0.txt")


def test_a_corpus_without_repeated_pairs_says_why_metrics_are_absent(folder: Path) -> None:
    context = context_of(folder, "retnet", None)
    point = context.cell.point.model_copy(update={"context_len": 64})
    for path in (folder / "texts").iterdir():
        path.write_text("one two three four five six seven eight", encoding="utf-8")
    fingerprint = load_corpus("texts", data_dir=folder).fingerprint
    evaluation = context.cell.evaluation.model_copy(update={"corpus_fingerprint": fingerprint})  # type: ignore[union-attr]
    cell = context.cell.model_copy(update={"point": point, "evaluation": evaluation})
    found = recall_slices.measure(replace(context, cell=cell))
    assert found.absent.keys() == {"hit_gain_nats", "hit_nats", "first_nats"}
    assert found.series == {}


def test_a_changed_counted_corpus_is_refused(folder: Path) -> None:
    context = context_of(folder, "retnet", "others")
    (folder / "others" / "0.txt").write_text("something else", encoding="utf-8")
    with pytest.raises(ConfigError, match="corpus 'others' has changed during the run"):
        recall_slices.measure(context)


def inputs(folder: Path, cell: Cell, **table: Any) -> dict[tuple[str, str], Any]:
    info = WeightsInfo(source="quality/cpu", fingerprint="f", format="retbench", seed=0, corpus="others")
    tokenizer = load_tokenizer("bytes")
    weights = Weights(path=folder, info=info, tokenizer="bytes", tokenizer_fingerprint=tokenizer.fingerprint)
    model = cell.under_test.model_copy(update={"weights": weights})
    spec = RecallSlicesSpec.model_validate({"corpora": ["texts"]} | table)
    return dict(recall_slices.find_inputs(spec, [model], folder))


def test_the_inputs_name_the_counted_corpus_and_stay_so_in_a_cell(folder: Path) -> None:
    cell = context_of(folder, "retnet", None).cell
    (found,) = inputs(folder, cell, counted_in="others", max_count=2, limit=3).values()
    assert (found.counted_in, found.max_count, found.limit, found.split) == ("others", 2, 3, "test")
    assert found.counted_in_fingerprint == load_corpus("others", data_dir=folder).fingerprint
    sent = cell.model_copy(update={"evaluation": found}).model_dump_json(by_alias=True)
    assert Cell.model_validate_json(sent).evaluation == found
    with pytest.raises(ConfigError, match="nowhere"):
        inputs(folder, cell, counted_in="nowhere")


def test_the_points_are_the_corpora_with_the_bytes_of_their_documents() -> None:
    spec = RecallSlicesSpec.model_validate({"corpora": ["texts", "others"], "document_bytes": ["2K", 64]})
    found = [(point.task, point.context_len) for point in spec.points()]
    assert found == [("texts", 2048), ("texts", 64), ("others", 2048), ("others", 64)]
    with pytest.raises(ValueError, match="greater than or equal to 64"):
        RecallSlicesSpec.model_validate({"corpora": ["texts"], "document_bytes": [10]})
