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


ACC_BY_DISTANCE = "acc_by_distance"
"""Series of the accuracy by the tokens from a key among the pairs to its question; `_low` and `_high` are the ends of
its 95 % interval over examples."""
FIRST_DISTANCE = 4
"""Tokens of the first bin of distances; every other bin ends at twice the end of the one before it."""


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
    import numpy as np

    from retbench.data.synthetic import make_examples, pair_distances
    from retbench.evaluation.bins import doubling_ends, ratio_series

    point, inputs = context.cell.point, context.cell.evaluation
    assert isinstance(inputs, GeneratedInputs)
    assert isinstance(inputs.examples, Mqar)
    assert point.num_pairs is not None
    examples = make_examples(
        inputs.examples, "test", point.num_pairs, point.context_len, start=0, count=inputs.limit
    )
    answers = answer(context, *examples)
    state = context.model.init_state(1, point.context_len)
    context.model.prefill(answers.examples.inputs[:1], state)
    distances, right = pair_distances(*examples, point.num_pairs), answers.right.numpy()
    is_far = distances > point.context_len // 2
    far = {"acc_far": Metric(unit="ratio", value=float(right[is_far].mean()))} if is_far.any() else {}
    ends = doubling_ends(FIRST_DISTANCE, point.context_len)
    bins = [(distances > start) & (distances <= end) for start, end in zip((0, *ends), ends, strict=False)]
    return Measurement(
        metrics=answers.metrics | far | {"state_bytes": Metric(unit="bytes", value=state.num_bytes)},
        series=ratio_series(
            ACC_BY_DISTANCE,
            "ratio",
            ("distance_tokens", ends),
            np.stack([(right & within).sum(axis=1) for within in bins], axis=1),
            np.stack([within.sum(axis=1) for within in bins], axis=1),
        ),
        absent={} if far else {"acc_far": "no question is more than half of the example after its pair"},
        backend=answers.backend,
    )


WORKLOAD = Workload(
    name="mqar",
    title="Multi-query associative recall",
    metrics=(
        MetricSpec("acc", "accuracy", False, better="better"),
        MetricSpec("acc_far", "accuracy beyond half of the example", False, better="better"),
        MetricSpec("state_bytes", "state", True),
    ),
    quantity="accuracy",
    replicate="document",
    scores="recall",
    spec=MqarSpec,
    measure=measure,
    find_inputs=find_inputs,
    modules=(__name__, generated.__name__),
    order=8,
    one_round=True,
)
