"""The optimiser of a recipe: AdamW whose decoupled weight decay shrinks matrices and leaves norms alone."""

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from retbench.config.training import Recipe
from retbench.ops.linear import Linear
from retbench.training.sharding import whole


def make_optimizer(model: nn.Module, recipe: Recipe) -> AdamW:
    """AdamW, in torch's fused form; the learning rate is set before every step."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        fused=True,
    )


def set_rate(optimizer: AdamW, learning_rate: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale all gradients so that their norm together is at most `limit`; their norm before, ().

    Of a model that is spread over processes, the norm is that of all shards.
    """
    return whole(nn.utils.clip_grad_norm_(model.parameters(), limit))


def lay_out_for_training(model: nn.Module) -> None:
    """Lay every projection out as torch's products, its optimisers and FSDP want it: contiguous.

    `Linear` keeps its weight transposed for decoding a single row, which training never does.
    """
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight = nn.Parameter(
                module.weight.detach().contiguous(memory_format=torch.contiguous_format)
            )
