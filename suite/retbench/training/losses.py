"""Cross-entropy of rows of tokens, in float32: what training minimises and what validation reports."""

import torch
import torch.nn.functional as F
from torch import Tensor

from retbench.data.packing import PackedTokens
from retbench.errors import ConfigError
from retbench.models.decoder import Decoder
from retbench.ops.retention import wide_dtype


def summed_loss(model: Decoder, rows: Tensor) -> Tensor:
    """Nats of rows (B, T + 1), each of whose T tokens foretells the next; summed, (), with gradients."""
    logits = model(rows[:, :-1])  # (B, T, N)
    wide = logits.flatten(0, 1).to(wide_dtype(logits.dtype))
    del logits  # in a 2-byte dtype the loss needs only their wide copy
    return F.cross_entropy(wide, rows[:, 1:].flatten(), reduction="sum")


def validation_rows(tokens: PackedTokens, num_tokens: int, seq_len: int) -> Tensor:
    """The first tokens of a split as whole rows (B, T + 1) that lie end to end, at most `num_tokens` of them scored.

    Where there are fewer tokens than one row has, the one row is as long as they are.

    Raises:
        ConfigError: there is no token to score, for want of one before it.
    """
    scored = min(num_tokens, len(tokens) - 1)
    if scored < 1:
        raise ConfigError(
            f"the split '{tokens.split}' of '{tokens.header.corpus}' has {len(tokens)} token, and the first has none "
            "before it to foretell it. Use a larger corpus."
        )
    length = min(seq_len, scored)
    count = scored // length
    flat = torch.from_numpy(tokens.tokens[: count * length + 1].astype("int64"))
    return flat.unfold(0, length + 1, length).contiguous()


@torch.no_grad()
def mean_loss(model: Decoder, rows: Tensor, micro_batch_size: int) -> float:
    """Nats per token of rows (B, T + 1)."""
    total = sum(float(summed_loss(model, part)) for part in rows.split(micro_batch_size))
    return total / (rows.shape[0] * (rows.shape[1] - 1))
