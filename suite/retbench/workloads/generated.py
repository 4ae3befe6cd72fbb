"""Answers to generated examples: what the workloads on synthetic tasks share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from retbench.config.synthetic import LengthRecall, Mqar
from retbench.errors import ConfigError, UnsupportedError
from retbench.planning.cells import ModelUnderTest
from retbench.records.record import Metric
from retbench.workloads.workload import Notes

if TYPE_CHECKING:
    from torch import Tensor

    from retbench.data.batches import Examples
    from retbench.data.synthetic import Array
    from retbench.models.decoder import Decoder
    from retbench.workloads.context import Context

Kind = TypeVar("Kind", Mqar, LengthRecall)

BATCH_SIZE = 64
"""Examples that are computed at a time."""


def examples_for(model: ModelUnderTest, name: str, make: Callable[[int], Kind], settings: str) -> Kind:
    """Return the settings of a model's test examples, which are those of its training.

    Args:
        model: The model.
        name: Name of the workload and of its task.
        make: Returns the settings for a vocabulary.
        settings: The settings in words, for a message.

    Raises:
        ConfigError: the model was trained on something else.
    """
    weights = model.trained_weights
    if weights.info.corpus != name:
        corpus = weights.info.corpus
        raise ConfigError(
            f"'{model.label}' {f'was trained on {corpus}' if corpus else 'has no record of its training'}, and the "
            f"workload '{name}' measures models that `retbench train` has trained on the task '{name}'. Train one: "
            f"retbench train {name}."
        )
    examples = make(model.model.vocab_size)
    if weights.corpus_fingerprint != examples.fingerprint:
        raise ConfigError(
            f"'{model.label}' was trained on other examples than those of the workload '{name}', with {settings}. "
            "Give both tables the same values."
        )
    return examples


@dataclass(frozen=True)
class Answers:
    """A model's answers to a test set.

    Attributes:
        examples: The test set, on the model's device.
        right: At which tokens the answer is right, (B, T) bool; False where nothing is asked.
        shares: Share of right answers of each example, (B,).
        backend: The executed backend and the hash of the test set.
    """

    examples: "Examples"
    right: "Tensor"
    shares: "Tensor"
    backend: Notes

    @property
    def metrics(self) -> dict[str, Metric]:
        """Accuracy, mean over the examples; its standard error, of two examples or more; and their number."""
        count = len(self.shares)
        found = {
            "acc": Metric(unit="ratio", value=float(self.shares.mean())),
            "num_examples": Metric(unit="count", value=count),
        }
        if count > 1:
            spread = float(self.shares.std()) / math.sqrt(count)
            found["acc_stderr"] = Metric(unit="ratio", value=spread)
        return found


def answer(context: "Context", inputs: "Array", targets: "Array") -> Answers:
    """Answer a test set; UnsupportedError for a model of another library, which cannot have been trained on it."""
    import torch

    from retbench.data.batches import Examples
    from retbench.data.synthetic import fingerprint_examples
    from retbench.evaluation.answers import right_answers, share_right

    if context.model.config.whole_model is not None:
        name = context.cell.workload
        raise UnsupportedError(
            f"{name} measures models that were trained on its examples. Train one: `retbench train {name}`"
        )
    examples = Examples(torch.from_numpy(inputs), torch.from_numpy(targets), answers_only=True).to(
        context.device
    )
    context.reset_backend_log()
    parts = []
    for part in examples.parts(BATCH_SIZE):
        parts.append(right_answers(cast("Decoder", context.model), part, BATCH_SIZE))
        context.report(part.inputs.numel())
    right = torch.cat(parts)
    notes: Notes = {
        "evaluation": context.model.executed_names,
        "test_set_fingerprint": fingerprint_examples(inputs, targets),
    }
    return Answers(examples, right, share_right(right, examples), notes)
