"""Needles as a workload: what is recorded of the answers, the prompts that models share, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retbench.config.evaluation import NeedleSpec
from retbench.errors import ConfigError
from retbench.planning.cells import Cell, NeedleInputs, Weights
from retbench.records.record import WeightsInfo
from retbench.workloads import needle
from retbench.workloads.context import Context

from .quality import BYTES, make_context


def context_of(folder: Path, name: str, haystack: str = "noise", context_len: int = 512) -> Context:
    context = make_context(folder, name, "needle", {"task": haystack, "context_len": context_len}, None)
    inputs = NeedleInputs(limit=2, num_depths=3, tokenizer="bytes", tokenizer_fingerprint=BYTES.fingerprint)
    return replace(context, cell=context.cell.model_copy(update={"evaluation": inputs}))


def test_what_is_recorded_are_the_answers_by_depth(tmp_path: Path) -> None:
    heard: list[int] = []
    found = needle.measure(replace(context_of(tmp_path, "retnet"), report=heard.append))
    rows = found.documents
    assert [row["doc_id"] for row in rows] == list(range(6))
    assert [row["depth_percent"] for row in rows] == [0, 0, 50, 50, 100, 100]
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values["num_examples"] == 6
    for name in ("acc", "contains", "choice"):
        mean = sum(row[name] for row in rows) / 6
        assert values[name] == pytest.approx(mean)
        series = found.series[f"{name}_by_depth"]
        assert series.x == (0, 50, 100)
        assert series.counts == (2, 2, 2)
        assert sum(series.y) / 3 == pytest.approx(mean)
    assert len(found.metrics["prefill_s"].samples) == 6
    assert values["prompt_state_bytes"] > 0
    assert sum(heard) == sum(row["num_tokens"] for row in rows)
    assert len({row["value"] for row in rows}) == 6


def test_the_prompts_are_the_same_for_models_with_one_tokenizer(tmp_path: Path) -> None:
    hashes = [
        needle.measure(context_of(tmp_path, *names)).backend["prompts_fingerprint"]
        for names in (("retnet",), ("transformer",), ("retnet", "needles"))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_haystack_of_the_training_fits_into_a_few_tokens(tmp_path: Path) -> None:
    found = needle.measure(context_of(tmp_path, "retnet", "short", context_len=64))
    assert all(row["num_tokens"] < 64 and 100 <= int(row["value"]) < 1000 for row in found.documents)
    cell = context_of(tmp_path, "retnet").cell
    assert inputs(tmp_path, cell, context_len=[32], haystacks=["short"])
    with pytest.raises(ConfigError, match="Ask for a longer context_len"):
        inputs(tmp_path, cell, context_len=[64], haystacks=["short", "noise"])


def inputs(folder: Path, cell: Cell, **table: Any) -> dict[tuple[str, str], Any]:
    info = WeightsInfo(source="quality/cpu", fingerprint="f", format="retbench", seed=0, corpus="python")
    weights = Weights(path=folder, info=info, tokenizer="bytes", tokenizer_fingerprint=BYTES.fingerprint)
    model = cell.under_test.model_copy(update={"weights": weights})
    return dict(
        needle.find_inputs(NeedleSpec.model_validate({"context_len": [512]} | table), [model], folder)
    )


def test_the_inputs_are_planned_per_haystack_and_stay_so_in_a_cell(tmp_path: Path) -> None:
    cell = context_of(tmp_path, "retnet").cell
    found = inputs(tmp_path, cell, haystacks=["noise", "needles"], limit=3)
    assert {task for _, task in found} == {"noise", "needles"}
    (first, _) = found.values()
    assert (first.limit, first.num_depths, first.corpus_fingerprint) == (3, 11, None)
    sent = cell.model_copy(update={"evaluation": first}).model_dump_json(by_alias=True)
    assert Cell.model_validate_json(sent).evaluation == first


def test_a_context_without_room_and_an_unknown_corpus_are_refused(tmp_path: Path) -> None:
    cell = context_of(tmp_path, "retnet").cell
    with pytest.raises(ConfigError, match="Ask for a longer context_len"):
        inputs(tmp_path, cell, context_len=[256])
    with pytest.raises(ConfigError, match="nowhere"):
        inputs(tmp_path, cell, haystacks=["nowhere"])
    random = cell.under_test.model_copy(update={"weights": None})
    with pytest.raises(ConfigError, match="random weights"):
        needle.find_inputs(NeedleSpec.model_validate({"context_len": [512]}), [random], tmp_path)


def test_the_points_are_every_haystack_at_every_length() -> None:
    spec = NeedleSpec.model_validate({"context_len": ["1K", 512], "haystacks": ["noise", "needles"]})
    assert [(point.task, point.context_len) for point in spec.points()] == [
        ("noise", 1024),
        ("noise", 512),
        ("needles", 1024),
        ("needles", 512),
    ]
    assert spec.limited(4).limit == 4
