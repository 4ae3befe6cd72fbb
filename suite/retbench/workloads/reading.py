"""What the workloads of quality read with: the tokenizer of a cell's model, held to the one that the plan found."""

from retbench.data.tokenizers import Tokenizer, load_tokenizer
from retbench.errors import ConfigError
from retbench.planning.cells import Evaluation
from retbench.workloads.context import Context


def evaluation_of(context: Context) -> Evaluation:
    """What the cell depends on beside its point."""
    evaluation = context.cell.evaluation
    if evaluation is None:
        raise ConfigError(
            f"workload '{context.cell.workload}' of '{context.cell.model_name}' does not say which tokenizer to use."
        )
    return evaluation


def tokenizer_of(context: Context) -> Tokenizer:
    """The tokenizer that goes with the cell's model.

    Raises:
        ConfigError: it is not the one that the plan found, or that the model was trained with.
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
