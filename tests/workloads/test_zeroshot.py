"""Zero-shot tasks as a workload: lm-eval's metrics, each document's answer, and what makes two scores comparable."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retbench.errors import ConfigError, UnsupportedError
from retbench.evaluation import zeroshot as scoring
from retbench.evaluation.lm import DecoderLM
from retbench.workloads import zeroshot
from retbench.workloads.context import Context

from .quality import make_context

QUESTIONS = [
    (
        "The man turned on the tap.",
        "Water flowed from the spout.",
        "The toilet filled with water.",
        "effect",
        0,
    ),
    (
        "The girl found a bug in her cereal.",
        "She poured milk in the bowl.",
        "She lost her appetite.",
        "effect",
        1,
    ),
    ("The woman retired.", "She received her pension.", "She paid off her mortgage.", "effect", 0),
    (
        "The pond froze over for the winter.",
        "People skated on the pond.",
        "People brought boats.",
        "effect",
        0,
    ),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with four questions of COPA and one page of WikiText; the hub is off."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RETBENCH_DATA", raising=False)
    fields = ("premise", "choice1", "choice2", "question", "label")
    write(tmp_path / "copa", [dict(zip(fields, row, strict=True)) for row in QUESTIONS], "validation")
    write(tmp_path / "wikitext", [{"page": " = A = \n\n A sentence of the page . \n"}], "test")
    return tmp_path


def write(folder: Path, rows: list[dict[str, Any]], split: str) -> None:
    folder.mkdir()
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def context_of(folder: Path, task: str, *, shots: int = 0, limit: int | None = None) -> Context:
    point = {"task": task, "context_len": 512, "num_fewshot": shots}
    return make_context(folder, "retnet", "zeroshot", point, {"limit": limit})


def test_the_record_has_the_metrics_and_the_rows_of_every_document(folder: Path) -> None:
    found = zeroshot.measure(context_of(folder, "copa"))
    assert [row["doc_id"] for row in found.documents] == [0, 1, 2, 3]
    right = []
    for row, question in zip(found.documents, QUESTIONS, strict=True):
        assert len(row["loglikelihoods"]) == 2
        right.append(row["loglikelihoods"].index(max(row["loglikelihoods"])) == question[-1])
        assert row["acc"] == right[-1]  # beside the rest, where a pair is compared by it
        choice = question[1 + question[-1]]
        assert row["target"].strip() == choice[0].lower() + choice[1:]
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values["acc"] == sum(right) / 4
    mean = values["acc"]
    assert values["acc_stderr"] == pytest.approx(math.sqrt(mean * (1 - mean) / 3))
    assert (values["num_documents"], values["num_requests"], values["num_truncated"]) == (4, 8, 0)
    assert values["tokens_per_s"] > 0
    assert found.absent == {}


def test_every_pass_is_reported(folder: Path) -> None:
    heard: list[int] = []
    zeroshot.measure(replace(context_of(folder, "copa"), report=heard.append))
    assert sum(heard) > 0


def test_what_ran_and_what_was_asked_are_noted(folder: Path) -> None:
    found = zeroshot.measure(context_of(folder, "copa"))
    assert "chunkwise" in str(found.backend["evaluation"])
    assert (found.backend["shown"], found.backend["task_split"]) == ("acc", "validation")
    assert found.backend["data_source"] == "local"
    assert not [name for name in found.backend if "fewshot" in name]
    again = zeroshot.measure(context_of(folder, "copa"))
    assert again.backend["prompts_fingerprint"] == found.backend["prompts_fingerprint"]
    shots = zeroshot.measure(context_of(folder, "copa", shots=2))
    assert shots.backend["prompts_fingerprint"] != found.backend["prompts_fingerprint"]
    assert shots.backend["fewshot_source"] == "validation, without the document itself"
    assert shots.backend["fewshot_seed"] == 1234


def test_a_limit_takes_the_first_documents(folder: Path) -> None:
    found = zeroshot.measure(context_of(folder, "copa", limit=1))
    assert found.metrics["num_documents"].value == 1
    assert "acc_stderr" not in found.metrics  # of one document


def test_units_and_numbers_that_are_too_large(folder: Path) -> None:
    found = zeroshot.measure(context_of(folder, "wikitext"))
    assert found.metrics["bits_per_byte"].unit == "bits"
    assert found.metrics["byte_perplexity"].unit == "ratio"
    assert found.metrics["bits_per_byte"].value == pytest.approx(
        math.log2(found.metrics["byte_perplexity"].value)
    )
    assert all(math.isfinite(metric.value) for metric in found.metrics.values())


def test_a_metric_that_is_no_number_is_absent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = scoring.evaluate

    def overflow(*args: Any, **options: Any) -> Any:
        scores = evaluate(*args, **options)
        scores.metrics["acc"] = scores.metrics["acc"]._replace(value=math.inf)
        return scores

    monkeypatch.setattr(scoring, "evaluate", overflow)
    found = zeroshot.measure(context_of(folder, "copa"))
    assert "acc" not in found.metrics
    assert found.absent == {"acc": "it is too large a number, or none"}


def test_a_task_without_data_says_what_was_looked_for(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"piqa: HF_HUB_OFFLINE .* Looked for: piqa/train.jsonl"):
        zeroshot.measure(context_of(folder, "piqa"))


FORMS = [("Title: A cat.\nTitle: ", "A cat "), ("Year: 1999\nPages: 12\nYear: ", " 1999\n")]
"""A text that ends with a field, and the field's value, with spaces as in the data sets of Based."""


def write_forms(folder: Path, name: str) -> None:
    write(folder / name, [{"text": text, "value": value} for text, value in FORMS], "validation")


@pytest.mark.parametrize("name", ["swde", "fda", "squad_completion"])
def test_an_answer_of_a_task_of_recall_is_right_if_it_contains_the_value(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def say(lm: DecoderLM, requests: Any, disable_tqdm: bool = False) -> list[str]:
        asked.extend(request.args[0] for request in requests)
        return ["it is a CAT, perhaps" for _ in requests]

    write_forms(folder, name)
    monkeypatch.setattr(DecoderLM, "generate_until", say)
    found = zeroshot.measure(context_of(folder, name))
    assert asked == ["Title: A cat.\nTitle:", "Year: 1999\nPages: 12\nYear:"]
    assert [row["contains"] for row in found.documents] == [1, 0]
    assert {row["text"] for row in found.documents} == {"it is a CAT, perhaps"}
    assert found.metrics["contains"].value == 0.5
    assert (found.backend["shown"], found.backend["task_version"]) == ("contains", "1")


def test_a_model_continues_a_form_and_a_prompt_without_room_is_an_error(folder: Path) -> None:
    write_forms(folder, "swde")
    context = context_of(folder, "swde", limit=1)
    found = zeroshot.measure(context)
    (row,) = found.documents
    assert isinstance(row["text"], str)
    assert row["loglikelihoods"] == row["is_greedy"] == ()
    assert found.metrics["num_truncated"].value == 0
    assert found.metrics["tokens_per_s"].value > 0
    point = context.cell.point.model_copy(update={"context_len": 60})
    short = replace(context, cell=context.cell.model_copy(update={"point": point}))
    with pytest.raises(ConfigError, match=r"prompt of 20 tokens and 48 new ones .* max_length 60"):
        zeroshot.measure(short)
