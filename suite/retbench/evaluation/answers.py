"""Answers to generated examples: which are right, and their share of each example."""

import torch
from torch import Tensor

from retbench.data.batches import IGNORED, Examples
from retbench.models.decoder import Decoder


@torch.no_grad()
def right_answers(model: Decoder, examples: Examples, batch_size: int) -> Tensor:
    """Return at which tokens a model answers rightly, (B, T) bool on the CPU.

    An answer is right if the target has the highest logit of the whole vocabulary. It is False where nothing is asked.

    Args:
        model: The model.
        examples: Examples on the model's device, each with a target or more.
        batch_size: Examples that are computed at a time.
    """
    parts = []
    for part in examples.parts(batch_size):
        asked = part.targets != IGNORED
        right = torch.zeros_like(asked)
        right[asked] = model(part.inputs, at=asked).argmax(-1) == part.targets[asked]
        parts.append(right.cpu())
    return torch.cat(parts)


def share_right(right: Tensor, examples: Examples) -> Tensor:
    """Return the share of right answers of each example, (B,) float64 on the CPU, from those of `right_answers`."""
    return right.sum(1, dtype=torch.float64) / (examples.targets != IGNORED).sum(1).cpu()


def answer_shares(model: Decoder, examples: Examples, batch_size: int) -> Tensor:
    """Return the share of right answers of each example, (B,) float64 on the CPU; see `right_answers`."""
    return share_right(right_answers(model, examples, batch_size), examples)
