"""Tokenizers of the workloads that measure quality: chosen when a run is planned, and checked when it is measured.

Inputs that do not fit a model are refused before anything is measured. Nothing here imports torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from retbench.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from retbench.errors import ConfigError
from retbench.planning.cells import Evaluation, ModelUnderTest

if TYPE_CHECKING:
    from retbench.workloads.context import Context


def choose_tokenizer(model: ModelUnderTest, asked: str | None, data_dir: Path | None) -> Tokenizer:
    """Load the tokenizer of the model's weights, or else the one that the profile names, and check that it fits.

    Raises:
        ConfigError: there is none, it does not fit the model, or the model was trained with another one.
    """
    weights = model.trained_weights
    name = weights.tokenizer or asked
    if name is None:
        raise ConfigError(
            f"the checkpoint of '{model.model_name}' comes without a tokenizer. Name one in the workload's field "
            "'tokenizer'."
        )
    tokenizer = load_tokenizer(name, data_dir=data_dir)
    trained_with = weights.tokenizer_fingerprint
    if trained_with is not None and tokenizer.fingerprint != trained_with:
        raise ConfigError(
            f"'{model.model_name}' was trained with a tokenizer of fingerprint {trained_with}, and '{name}' has "
            f"{tokenizer.fingerprint}. Restore its files."
        )
    check_vocabulary(tokenizer, model.model.vocab_size)
    return tokenizer


def evaluation_of(context: "Context") -> Evaluation:
    """Return the evaluation inputs of the cell of a workload that has some."""
    assert isinstance(context.cell.evaluation, Evaluation)
    return context.cell.evaluation


def tokenizer_of(context: "Context") -> Tokenizer:
    """Load the tokenizer that the plan chose for the cell's model.

    Raises:
        ConfigError: its files have changed since.
    """
    evaluation = evaluation_of(context)
    tokenizer = load_tokenizer(evaluation.tokenizer, data_dir=context.data_dir)
    if tokenizer.fingerprint != evaluation.tokenizer_fingerprint:
        raise ConfigError(
            f"tokenizer '{evaluation.tokenizer}' has the fingerprint {tokenizer.fingerprint}, and "
            f"'{context.cell.model_name}' wants {evaluation.tokenizer_fingerprint}. Restore its files, or name the "
            "right tokenizer."
        )
    return tokenizer
