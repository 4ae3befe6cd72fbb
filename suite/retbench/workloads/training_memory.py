"""Roughly what a training step holds at its peak, without torch, for estimates; what it does hold is measured."""

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig, RetNetConfig
from retbench.config.experiment import DTYPE_BYTES
from retbench.planning.cells import Cell


def estimated_bytes(cell: Cell) -> int:
    """Weights, gradients and two averages of them, what the blocks keep for the gradients, and the logits."""
    model, dtype, point = cell.model, cell.settings.dtype, cell.point
    kept = 1 if cell.settings.activation_checkpointing else model.num_layers
    entering = (
        model.num_layers * model.d_model * DTYPE_BYTES[dtype]
    )  # what a block's input takes is all that stays
    a_token = entering + kept * _block_bytes(model, dtype) + _logit_bytes(model, dtype)
    scores = 0
    if cell.backend in ("parallel", "reference"):
        tensors = (
            2 if isinstance(model, RetNetConfig) else 1
        )  # the decays of all pairs, and the scores with them
        one = model.num_heads * point.context_len**2 * costs.STATE_BYTES_PER_VALUE[dtype]
        scores = tensors * (kept + 2) * one  # two more while gradients are computed
    activations = point.batch_size * (a_token * point.context_len + scores)
    return 4 * costs.weight_bytes(model, dtype) + activations


def _block_bytes(model: ModelConfig, dtype: str) -> int:
    """Bytes that one block keeps for each token: what each of its operators needs again for the gradients."""
    ffn = (4 if model.traits.ffn == "swiglu" else 2) * model.ffn_dim
    if not isinstance(model, RetNetConfig):
        return (10 * model.d_model + ffn) * DTYPE_BYTES[dtype]
    retained = (
        3 * model.d_model + 2 * model.value_dim
    )  # queries, keys and values as they enter, and what comes out
    rest = 7 * model.d_model + 4 * model.value_dim + ffn
    return rest * DTYPE_BYTES[dtype] + retained * costs.STATE_BYTES_PER_VALUE[dtype]


def _logit_bytes(model: ModelConfig, dtype: str) -> int:
    """Bytes of the logits of one token: in the model's dtype, and their wide probabilities and gradients."""
    return model.vocab_size * (DTYPE_BYTES[dtype] + 2 * costs.STATE_BYTES_PER_VALUE[dtype])
