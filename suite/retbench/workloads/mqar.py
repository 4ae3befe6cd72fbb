"""Accuracy of multi-query associative recall on generated examples, and the bytes of the state that recalls."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retbench.config.synthetic import Mqar, MqarSpec
from retbench.errors import ConfigError
from retbench.planning.cells import GeneratedInputs, Inputs, ModelUnderTest
from retbench.records.record import Metric
from retbench.workloads import generated
from retbench.workloads.generated import answer, examples_for
from retbench.workloads.workload import Measurement, MetricSpec, Workload, without_gradients

if TYPE_CHECKING:
    from retbench.workloads.context import Context


def find_inputs(spec: MqarSpec, models: Sequence[ModelUnderTest], data_dir: Path | None) -> Inputs:
    """Describe the test examples of each model, which depend on its vocabulary.

    Raises:
        ConfigError: a model was trained on something else, or its vocabulary is too small.
    """
    return {
        (model.label, "mqar"): GeneratedInputs(examples=_examples(spec, model), limit=spec.limit)
        for model in models
    }


def _examples(spec: MqarSpec, model: ModelUnderTest) -> Mqar:
    """Return the settings of a model's test examples, which are those of its training."""
    settings = f"power {spec.power} and random_filler {str(spec.random_filler).lower()}"
    examples = examples_for(model, "mqar", spec.task_of, settings)
    try:
        for point in spec.points():
            examples.check(point.num_pairs or 0, point.context_len)
    except ValueError as error:
        raise ConfigError(f"workloads.mqar of '{model.label}': {error}. Ask for fewer pairs.") from error
    return examples


@without_gradients
def measure(context: "Context") -> Measurement:
    """Answer the cell's test set, and measure the state that one example leaves."""
    from retbench.data.synthetic import make_examples

    point, inputs = context.cell.point, context.cell.evaluation
    assert isinstance(inputs, GeneratedInputs)
    assert isinstance(inputs.examples, Mqar)
    assert point.num_pairs is not None
    answers = answer(
        context,
        *make_examples(
            inputs.examples, "test", point.num_pairs, point.context_len, start=0, count=inputs.limit
        ),
    )
    state = context.model.init_state(1, point.context_len)
    context.model.prefill(answers.examples.inputs[:1], state)
    state_bytes = Metric(unit="bytes", value=state.num_bytes)
    return Measurement(metrics=answers.metrics | {"state_bytes": state_bytes}, backend=answers.backend)


WORKLOAD = Workload(
    name="mqar",
    title="Multi-query associative recall",
    kind="quality",
    metrics=(
        MetricSpec("acc", "accuracy", False, better="better"),
        MetricSpec("state_bytes", "state", True),
    ),
    quantity="accuracy",
    replicate="document",
    spec=MqarSpec,
    measure=measure,
    find_inputs=find_inputs,
    modules=(__name__, generated.__name__),
    order=8,
    one_round=True,
)
