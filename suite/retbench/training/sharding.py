"""A model whose weights, gradients and optimiser are spread over processes (FSDP2), and its tensors in one piece."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from retbench.models.decoder import Decoder


def shard(model: "Decoder", num_processes: int) -> None:
    """Spread each block, and what is outside of the blocks, over the processes of the default group.

    Every process has built the whole model first, so that weights are those of a process alone.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (num_processes,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def let_go(model: nn.Module) -> None:
    """Let go of what a forward pass without a backward one leaves in one piece: the weights outside of the blocks."""
    reshard = getattr(model, "reshard", None)
    if reshard is not None:
        reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece, in every process; all of them call this."""
    gathered = getattr(tensor, "full_tensor", None)
    return tensor if gathered is None else gathered()


@torch.no_grad()
def laid_out_as(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device, in the memory layout and in the shards of another; one in shards as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(value, DTensor):
        return value
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return torch.zeros_like(like, memory_format=torch.preserve_format).copy_(value)


def whole_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Every weight by name, whole and on the CPU, gathered one after the other.

    Args:
        model: The model; all of its processes call this.
        keep: Whether this process wants them; else it gets none and needs no memory for them.
    """
    found = {}
    for name, weight in model.named_parameters():
        gathered = whole(weight.detach())
        if keep:
            found[name] = gathered.cpu()
    return found
