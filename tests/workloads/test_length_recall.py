"""Recall beyond the trained length: what is measured, at which lengths, and on which models."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from retbench.config.synthetic import LengthRecall, LengthRecallSpec, LengthTaskName
from retbench.data.length_examples import make_length_examples
from retbench.errors import ConfigError
from retbench.planning.cells import Cell, GeneratedInputs
from retbench.records.record import Point, WeightsInfo
from retbench.workloads import length_recall
from retbench.workloads.context import Context
from tests.workloads.conftest import make_cell, trained_on

ContextOf = Callable[[Cell], Context]
EXAMPLES = LengthRecall(num_selected=3)
SPEC = LengthRecallSpec(trained_len=16, num_selected=3, limit=50)


def cell_of(name: str, task: str = "copy", context_len: int = 32, limit: int = 70) -> Cell:
    fields = {
        "under_test": trained_on(EXAMPLES, name),
        "workload": "length_recall",
        "point": Point(batch_size=1, context_len=context_len, task=task),
        "evaluation": GeneratedInputs(examples=EXAMPLES, limit=limit),
    }
    return make_cell(name, "length_recall", context_len).model_copy(update=fields)


@pytest.mark.parametrize("task", ["copy", "induction", "selective_copy"])
def test_the_accuracy_is_that_of_the_highest_logits(context_of: ContextOf, task: str) -> None:
    heard: list[int] = []
    context = replace(context_of(cell_of("retnet", task)), report=heard.append)
    found = length_recall.measure(context)
    made = make_length_examples(EXAMPLES, "test", cast("LengthTaskName", task), 32, start=0, count=70)
    inputs, targets = map(torch.from_numpy, made)
    with torch.no_grad():
        best = context.model(inputs).argmax(-1)
    shares = (best == targets).sum(1) / (targets >= 0).sum(1)
    assert {name: metric.value for name, metric in found.metrics.items()} == pytest.approx(
        {
            "acc": float(shares.mean()),
            "acc_stderr": float(shares.std()) / math.sqrt(70),
            "exact": float((shares == 1).double().mean()),
            "guess": 1 / 26,
            "num_examples": 70,
        }
    )
    assert sum(heard) == 70 * 32
    assert (found.backend["evaluation"], found.backend["trained_len"]) == ("chunkwise", 16)


def test_all_answers_are_right_if_and_only_if_generation_copies_the_string(context_of: ContextOf) -> None:
    """The model is replaced by one that copies the first symbols and guesses the last in half of the strings."""
    context = context_of(cell_of("retnet"))

    class Copies:
        def __getattr__(self, name: str) -> Any:
            return getattr(context.model, name)

        def __call__(self, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            rows, places = at.nonzero(as_tuple=True)
            symbols = tokens[rows, places - 16].clone()
            symbols[(places == 31) & (rows % 2 == 1)] = 0
            return torch.nn.functional.one_hot(symbols, 30).double()

    found = length_recall.measure(replace(context, model=Copies()))  # type: ignore[arg-type]
    assert found.metrics["exact"].value == 0.5
    assert found.metrics["acc"].value == pytest.approx(1 - 0.5 / 16)


def test_a_test_set_is_the_same_for_every_model_and_has_its_hash(context_of: ContextOf) -> None:
    def hash_of(name: str, **changes: Any) -> object:
        return length_recall.measure(context_of(cell_of(name, **changes))).backend["test_set_fingerprint"]

    assert hash_of("retnet") == hash_of("transformer")
    others = [
        hash_of("retnet", task="induction"),
        hash_of("retnet", context_len=16),
        hash_of("retnet", limit=9),
    ]
    assert len({hash_of("retnet"), *others}) == 4


def test_the_points_are_every_task_at_every_multiple_of_the_trained_length() -> None:
    found = [(point.task, point.context_len) for point in SPEC.points()]
    lengths = [16, 32, 64, 128, 256]
    assert found == [(task, length) for task in ("copy", "induction", "selective_copy") for length in lengths]
    assert SPEC.limited(7).limit == 7


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({}, "Field required"),
        ({"trained_len": 15}, "an even number of tokens"),
        ({"trained_len": 8}, "8 symbols and their copy take 16 tokens"),
        ({"trained_len": 16, "multiples": [1, 1]}, "stands in it twice"),
        ({"trained_len": 16, "multiples": []}, "at least 1"),
        ({"trained_len": "1M", "multiples": [1024]}, "1024 times 1048576 tokens are more than"),
        ({"trained_len": 16, "tasks": ["mqar"]}, "should be 'copy'"),
    ],
)
def test_a_table_without_such_examples_is_refused(table: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LengthRecallSpec.model_validate(table)


def test_the_examples_are_those_of_the_models_vocabulary_and_of_the_table() -> None:
    wide = trained_on(LengthRecall(vocab_size=40, num_selected=3), "transformer")
    found = length_recall.find_inputs(SPEC, [trained_on(EXAMPLES, "retnet"), wide], None)
    assert len(found) == 6
    assert found["retnet 25K seed 0", "copy"] == GeneratedInputs(examples=EXAMPLES, limit=50)
    inputs = found["transformer 25K seed 0", "induction"]
    assert isinstance(inputs, GeneratedInputs)
    assert inputs.examples.vocab_size == 40


def test_a_model_that_was_trained_on_something_else_or_at_another_length_is_refused() -> None:
    info = WeightsInfo(source="quality/cpu", fingerprint="f", format="retbench", seed=0, corpus="python")
    for model, spec, reason in (
        (trained_on(EXAMPLES, "retnet", info=info), SPEC, "'retnet 25K seed 0' was trained on python"),
        (
            trained_on(EXAMPLES, "retnet", info=info.model_copy(update={"corpus": None})),
            SPEC,
            "no record of its training",
        ),
        (trained_on(LengthRecall(num_selected=4), "retnet"), SPEC, "other examples .* with num_selected 3"),
        (
            trained_on(EXAMPLES, "retnet", context_len=64),
            SPEC,
            "was trained on 64 tokens .* trained_len .* is 16",
        ),
        (trained_on(EXAMPLES, "retnet", context_len=None), SPEC, "an unknown number of tokens"),
        (trained_on(EXAMPLES, "retnet").model_copy(update={"weights": None}), SPEC, "random weights"),
    ):
        with pytest.raises(ConfigError, match=reason):
            length_recall.find_inputs(spec, [model], None)


def test_the_examples_are_part_of_a_cells_identity_and_the_trained_length_reaches_the_worker() -> None:
    cell = cell_of("retnet")
    restored = Cell.model_validate_json(cell.model_dump_json(by_alias=True))
    assert restored == cell
    assert restored.under_test.trained_weights.context_len == 16
    other = cell.model_copy(
        update={"evaluation": GeneratedInputs(examples=LengthRecall(num_selected=2), limit=70)}
    )
    assert len({cell.cell_id, other.cell_id, cell_of("retnet", "induction").cell_id}) == 3
