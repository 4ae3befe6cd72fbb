"""Accuracy of multi-query associative recall on generated examples, and the bytes of the state that recalls."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from retbench.config.synthetic import Mqar, MqarSpec
from retbench.errors import ConfigError, UnsupportedError
from retbench.planning.cells import GeneratedInputs, Inputs, ModelUnderTest
from retbench.records.record import Metric
from retbench.workloads.workload import Measurement, MetricSpec, Workload, without_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from retbench.data.batches import Examples
    from retbench.models.decoder import Decoder
    from retbench.workloads.context import Context

BATCH_SIZE = 64
"""Examples that are computed at a time."""


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
    weights, examples = model.trained_weights, spec.task_of(model.model.vocab_size)
    if weights.info.corpus != examples.name:
        raise ConfigError(
            f"'{model.label}' was trained on {weights.info.corpus or 'a text that is not recorded'}, and the workload "
            f"'mqar' measures models that were trained on the task '{examples.name}'. Train it on that: retbench train "
            "mqar."
        )
    if weights.corpus_fingerprint != examples.fingerprint:
        raise ConfigError(
            f"'{model.label}' was trained on other examples than those of the workload 'mqar', with power {spec.power} "
            f"and random_filler {str(spec.random_filler).lower()}. Give both tables the same values."
        )
    try:
        for point in spec.points():
            examples.check(point.num_pairs or 0, point.context_len)
    except ValueError as error:
        raise ConfigError(f"workloads.mqar of '{model.label}': {error}. Ask for fewer pairs.") from error
    return examples


@without_gradients
def measure(context: "Context") -> Measurement:
    """Answer the cell's test set, and measure the state that one example leaves."""
    import torch

    from retbench.data.batches import Examples
    from retbench.data.synthetic import fingerprint_examples, make_examples

    point, inputs = context.cell.point, context.cell.evaluation
    assert isinstance(inputs, GeneratedInputs)
    assert point.num_pairs is not None
    tokens, targets = make_examples(
        inputs.examples, "test", point.num_pairs, point.context_len, start=0, count=inputs.limit
    )
    examples = Examples(torch.from_numpy(tokens), torch.from_numpy(targets), answers_only=True).to(
        context.device
    )
    context.reset_backend_log()
    shares = _answer(context, examples)
    executed = context.model.executed_backends()
    state = context.model.init_state(1, point.context_len)
    context.model.prefill(examples.inputs[:1], state)
    return Measurement(
        metrics={
            "acc": Metric(unit="ratio", value=float(shares.mean())),
            "state_bytes": Metric(unit="bytes", value=state.num_bytes),
            "num_examples": Metric(unit="count", value=len(shares)),
            **_standard_error(shares),
        },
        backend={
            "evaluation": "+".join(sorted(set(executed.values()))),
            "test_set_fingerprint": fingerprint_examples(tokens, targets),
        },
    )


def _answer(context: "Context", examples: "Examples") -> "Tensor":
    """Return the share of right answers of each example, (B,)."""
    import torch

    from retbench.evaluation.answers import answer_shares

    if context.model.config.whole_model is not None:
        raise UnsupportedError(
            "mqar measures models that were trained on its examples. Train one: `retbench train mqar`"
        )
    shares = []
    for part in examples.parts(BATCH_SIZE):
        shares.append(answer_shares(cast("Decoder", context.model), part, BATCH_SIZE))
        context.report(part.inputs.numel())
    return torch.cat(shares)


def _standard_error(shares: "Tensor") -> dict[str, Metric]:
    """Return the standard error of the mean over the examples; nothing for a single one."""
    if len(shares) < 2:
        return {}
    return {"acc_stderr": Metric(unit="ratio", value=float(shares.std()) / math.sqrt(len(shares)))}


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
    order=8,
    one_round=True,
)
