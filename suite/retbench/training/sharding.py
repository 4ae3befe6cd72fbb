"""Models sharded over several processes by FSDP2: their shards, and their full weights.

Only where there are several, torch's module of sharded tensors is imported, which takes half a second.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from retbench.models.decoder import Decoder


def shard(model: "Decoder", num_processes: int) -> None:
    """Shard each block, and the weights outside the blocks, over the processes of the default group.

    Every process has built the whole model before, so that the weights equal those of a single process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (num_processes,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def reshard(model: nn.Module) -> None:
    """Free the full weights outside the blocks, which a forward pass without a backward pass leaves gathered."""
    method = getattr(model, "reshard", None)
    if method is not None:
        method()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor in every process; all processes call this."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def full_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Return every full weight by name on the CPU, or none if `keep` is False; all processes call this.

    Weights are gathered one after the other, so that a process that keeps none needs memory for only one.
    """
    found = {}
    for name, weight in model.named_parameters():
        gathered = full_tensor(weight.detach())
        if keep:
            found[name] = gathered.cpu()
    return found


def own_rows(tensor: Tensor, *, leads: bool) -> Tensor:
    """Return this process's rows of a sharded tensor; of a full one all in the first process and none in the others."""
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    if to_local is not None:
        return to_local()
    return tensor if leads else tensor.new_empty(0)


@torch.no_grad()
def match_layout(value: Tensor, like: Tensor) -> Tensor:
    """Return a full tensor, which every process has, with the device, memory layout and shards of `like`."""
    if hasattr(like, "placements"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = like
        own = value.to(like.device)
        return distribute_tensor(own, sharded.device_mesh, sharded.placements, src_data_rank=None)
    return torch.zeros_like(like, memory_format=torch.preserve_format).copy_(value)
