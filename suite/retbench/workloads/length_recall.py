"""Accuracy of copying, induction and selective copying at multiples of the trained length."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from retbench.config.synthetic import LengthRecall, LengthRecallSpec, LengthTaskName
from retbench.errors import ConfigError
from retbench.planning.cells import GeneratedInputs, Inputs, ModelUnderTest
from retbench.records.record import Metric
from retbench.workloads import generated
from retbench.workloads.generated import answer, examples_for
from retbench.workloads.workload import Measurement, MetricSpec, Workload, without_gradients

if TYPE_CHECKING:
    from retbench.workloads.context import Context


def find_inputs(spec: LengthRecallSpec, models: Sequence[ModelUnderTest], data_dir: Path | None) -> Inputs:
    """Describe the test examples of each model, which depend on its vocabulary.

    Raises:
        ConfigError: a model was trained on something else, or at another length.
    """
    return {
        (model.label, task): GeneratedInputs(examples=_examples(spec, model), limit=spec.limit)
        for model in models
        for task in spec.tasks
    }


def _examples(spec: LengthRecallSpec, model: ModelUnderTest) -> LengthRecall:
    """Return the settings of a model's test examples, which are those of its training."""
    examples = examples_for(model, "length_recall", spec.examples_of, f"num_selected {spec.num_selected}")
    trained_len = model.trained_weights.context_len
    if trained_len != spec.trained_len:
        raise ConfigError(
            f"'{model.label}' was trained on {trained_len or 'an unknown number of'} tokens at a time, and trained_len "
            f"of the workload 'length_recall' is {spec.trained_len}. Give trained_len the value of training.seq_len."
        )
    return examples


@without_gradients
def measure(context: "Context") -> Measurement:
    """Answer the cell's test set."""
    from retbench.data.length_examples import make_length_examples

    point, inputs = context.cell.point, context.cell.evaluation
    assert isinstance(inputs, GeneratedInputs)
    assert isinstance(inputs.examples, LengthRecall)
    task = cast("LengthTaskName", point.task)
    answers = answer(
        context,
        *make_length_examples(inputs.examples, "test", task, point.context_len, start=0, count=inputs.limit),
    )
    exact, guess = float((answers.shares == 1).double().mean()), 1 / inputs.examples.num_symbols
    trained_len = context.cell.under_test.trained_weights.context_len
    assert trained_len is not None
    return Measurement(
        metrics=answers.metrics
        | {"exact": Metric(unit="ratio", value=exact), "guess": Metric(unit="ratio", value=guess)},
        backend=answers.backend | {"trained_len": trained_len},
    )


WORKLOAD = Workload(
    name="length_recall",
    title="Recall beyond the trained length",
    metrics=(
        MetricSpec("acc", "accuracy", False, better="better"),
        MetricSpec("exact", "all answers right", False, better="better", unit="ratio"),
        MetricSpec("guess", "guessing", unit="ratio"),
    ),
    quantity="accuracy",
    replicate="document",
    scores="lengths",
    spec=LengthRecallSpec,
    measure=measure,
    find_inputs=find_inputs,
    modules=(__name__, generated.__name__),
    order=9,
    one_round=True,
)
