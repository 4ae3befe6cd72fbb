"""Recall on generated examples: what is measured, on which models, and that a plan carries it to the worker."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from retbench.architectures import costs
from retbench.config.synthetic import Mqar, MqarSpec
from retbench.data.synthetic import make_examples
from retbench.errors import ConfigError
from retbench.planning.cells import Cell, GeneratedInputs, ModelUnderTest
from retbench.records.record import Point, WeightsInfo
from retbench.workloads import mqar
from retbench.workloads.context import Context
from tests.workloads.conftest import make_cell, trained_on

ContextOf = Callable[[Cell], Context]
EXAMPLES = Mqar(vocab_size=64)


def model_of(name: str, **weights: Any) -> ModelUnderTest:
    """A small model with weights that say that they were trained on the task."""
    return trained_on(EXAMPLES, name, **weights)


def cell_of(name: str, num_pairs: int = 3, limit: int = 70, seq_len: int = 24) -> Cell:
    fields = {
        "under_test": model_of(name),
        "workload": "mqar",
        "point": Point(batch_size=1, context_len=seq_len, task="mqar", num_pairs=num_pairs),
        "evaluation": GeneratedInputs(examples=EXAMPLES, limit=limit),
    }
    return make_cell(name, "mqar", seq_len).model_copy(update=fields)


def answers_of(inputs: torch.Tensor, targets: torch.Tensor, best: torch.Tensor) -> Iterator[tuple[int, bool]]:
    """The distance of each question from its key, and whether its answer is right, one after the other."""
    for row, answers, found in zip(inputs.tolist(), targets.tolist(), best.tolist(), strict=True):
        for place, answer in enumerate(answers):
            if answer >= 0:
                yield place - row.index(row[place]), answer == found[place]


@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_the_accuracy_is_that_of_the_highest_logits_and_the_state_that_of_the_model(
    context_of: ContextOf, name: str
) -> None:
    cell = cell_of(name)
    heard: list[int] = []
    context = replace(context_of(cell), report=heard.append)
    found = mqar.measure(context)
    inputs, targets = map(torch.from_numpy, make_examples(EXAMPLES, "test", 3, 24, start=0, count=70))
    with torch.no_grad():
        best = context.model(inputs).argmax(-1)
    shares = (best == targets).sum(1) / 3
    values = {name: metric.value for name, metric in found.metrics.items()}
    far = [right for distance, right in answers_of(inputs, targets, best) if distance > 12]
    assert values == pytest.approx(
        {
            "acc": float(shares.mean()),
            "acc_far": sum(far) / len(far),
            "acc_stderr": float(shares.std()) / math.sqrt(70),
            "state_bytes": costs.state_bytes(cell.model, "float32", 1, 24),
            "num_examples": 70,
        }
    )
    assert sum(heard) == 70 * 24
    assert found.backend["evaluation"] == ("chunkwise" if name == "retnet" else "sdpa:flash")


def test_a_model_that_answers_is_right(context_of: ContextOf) -> None:
    """The model is replaced by one that looks up the key among the pairs."""
    context = context_of(cell_of("retnet"))

    class LookUp:
        def __getattr__(self, name: str) -> Any:
            return getattr(context.model, name)

        def __call__(self, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            rows, places = at.nonzero(as_tuple=True)
            keys = tokens[rows, places]
            pairs = (tokens[rows, 0:6:2] == keys[:, None]).double().argmax(1)
            return torch.nn.functional.one_hot(tokens[rows, 2 * pairs + 1], 64).double()

    found = mqar.measure(replace(context, model=LookUp()))  # type: ignore[arg-type]
    assert found.metrics["acc"].value == 1.0
    assert found.metrics["acc_stderr"].value == 0.0


def test_the_accuracy_by_distance_counts_every_question_once(context_of: ContextOf) -> None:
    context = context_of(cell_of("retnet"))
    series = mqar.measure(context).series
    inputs, targets = map(torch.from_numpy, make_examples(EXAMPLES, "test", 3, 24, start=0, count=70))
    with torch.no_grad():
        found = list(answers_of(inputs, targets, context.model(inputs).argmax(-1)))
    assert series.keys() == {"acc_by_distance", "acc_by_distance_low", "acc_by_distance_high"}
    mean = series["acc_by_distance"]
    assert (mean.x, mean.x_name, mean.unit) == ((4, 8, 16, 32), "distance_tokens", "ratio")
    for first, end, share, count in zip((0, 4, 8, 16), mean.x, mean.y, mean.counts, strict=True):
        own = [right for distance, right in found if first < distance <= end]
        assert (share, count) == (pytest.approx(sum(own) / len(own)), len(own))
    assert sum(mean.counts) == 70 * 3
    for low, share, high in zip(
        series["acc_by_distance_low"].y, mean.y, series["acc_by_distance_high"].y, strict=True
    ):
        assert 0 <= low <= share <= high <= 1


def test_without_a_far_question_the_accuracy_of_these_is_absent(context_of: ContextOf) -> None:
    """Only the second of two examples of two pairs in eight tokens asks 6 tokens after a key."""
    first, both = (mqar.measure(context_of(cell_of("retnet", 2, limit, 8))) for limit in (1, 2))
    assert "acc_far" not in first.metrics
    assert "more than half of the example" in first.absent["acc_far"]
    assert both.metrics["acc_far"].value in (0.0, 1.0)
    assert not both.absent


def test_a_test_set_is_the_same_for_every_model_and_has_its_hash(context_of: ContextOf) -> None:
    def hash_of(name: str, **changes: int) -> object:
        return mqar.measure(context_of(cell_of(name, **changes))).backend["test_set_fingerprint"]

    assert hash_of("retnet") == hash_of("transformer")
    assert len({hash_of("retnet"), hash_of("retnet", num_pairs=2), hash_of("retnet", limit=9)}) == 3


def test_a_single_example_has_no_standard_error(context_of: ContextOf) -> None:
    assert mqar.measure(context_of(cell_of("retnet", limit=1))).metrics.keys() - {"acc_far"} == {
        "acc",
        "state_bytes",
        "num_examples",
    }


SPEC = MqarSpec.model_validate({"num_pairs": {"24": [2, 3], "1K": [8]}, "limit": 50})


def test_the_points_are_every_number_of_pairs_at_its_length() -> None:
    found = [(point.context_len, point.num_pairs, point.task) for point in SPEC.points()]
    assert found == [(24, 2, "mqar"), (24, 3, "mqar"), (1024, 8, "mqar")]
    assert SPEC.limited(7).limit == 7


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"num_pairs": {}}, "at least 1"),
        ({"num_pairs": {"24": [7]}}, "7 pairs and a question for each take 28 tokens"),
        ({"num_pairs": {"25": [2]}}, "must be even"),
        ({"num_pairs": {"24": [2, 2]}}, "stands in it twice"),
        ({"num_pairs": {"24": [2]}, "power": 0}, "greater than 0"),
    ],
)
def test_a_table_without_such_examples_is_refused(table: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MqarSpec.model_validate(table)


def test_the_examples_are_those_of_the_models_vocabulary_and_of_the_table() -> None:
    found = mqar.find_inputs(SPEC, [model_of("retnet"), model_of("transformer")], None)
    assert found.keys() == {("retnet 25K seed 0", "mqar"), ("transformer 25K seed 0", "mqar")}
    assert set(found.values()) == {GeneratedInputs(examples=EXAMPLES, limit=50)}


def test_a_model_that_was_trained_on_something_else_is_refused() -> None:
    info = WeightsInfo(source="quality/cpu", fingerprint="f", format="retbench", seed=0, corpus="python")
    with pytest.raises(ConfigError, match="'retnet 25K seed 0' was trained on python"):
        mqar.find_inputs(SPEC, [model_of("retnet", info=info)], None)
    for other in ({"power": 0.5}, {"random_filler": True}):
        with pytest.raises(ConfigError, match="was trained on other examples"):
            mqar.find_inputs(SPEC.model_copy(update=other), [model_of("retnet")], None)
    random = model_of("retnet").model_copy(update={"weights": None})
    with pytest.raises(ConfigError, match="random weights"):
        mqar.find_inputs(SPEC, [random], None)


def test_more_pairs_than_the_vocabulary_has_are_refused() -> None:
    spec = MqarSpec.model_validate({"num_pairs": {"256": [40]}})
    with pytest.raises(ConfigError, match="40 pairs need as many keys, and vocab_size 64 has 31"):
        mqar.find_inputs(spec, [model_of("retnet")], None)


def test_the_examples_are_part_of_a_cells_identity_and_reach_the_worker() -> None:
    cell = cell_of("retnet")
    assert Cell.model_validate_json(cell.model_dump_json(by_alias=True)) == cell
    filled = GeneratedInputs(examples=Mqar(vocab_size=64, random_filler=True), limit=70)
    others = [cell_of("retnet", num_pairs=4), cell_of("retnet", limit=71)]
    others.append(cell.model_copy(update={"evaluation": filled}))
    assert len({one.cell_id for one in (cell, *others)}) == 4
