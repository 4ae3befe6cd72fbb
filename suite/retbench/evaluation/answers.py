"""Accuracy on generated examples: the share of right answers of each."""

import torch
from torch import Tensor

from retbench.data.batches import IGNORED, Examples
from retbench.models.decoder import Decoder


@torch.no_grad()
def answer_shares(model: Decoder, examples: Examples, batch_size: int) -> Tensor:
    """Return the share of right answers of each example, (B,) float64 on the CPU.

    An answer is right if the target has the highest logit of the whole vocabulary.

    Args:
        model: The model.
        examples: Examples on the model's device, each with a target or more.
        batch_size: Examples that are computed at a time.
    """
    shares = []
    for part in examples.parts(batch_size):
        asked = part.targets != IGNORED
        right = torch.zeros(asked.shape, dtype=torch.float64, device=asked.device)
        right[asked] = (model(part.inputs, at=asked).argmax(-1) == part.targets[asked]).double()
        shares.append(right.sum(1) / asked.sum(1))
    return torch.cat(shares).cpu()
