"""Models sharded over several processes by FSDP2: gathered, re-sharded, and stored as a distributed checkpoint."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from retbench.errors import StorageError
from retbench.files import checksum, storing
from retbench.training.ranks import Ranks

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


@torch.no_grad()
def match_layout(value: Tensor, like: Tensor) -> Tensor:
    """Return a full tensor with the device, memory layout and shards of `like`; a sharded one is returned as is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(value, DTensor):
        return value
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return torch.zeros_like(like, memory_format=torch.preserve_format).copy_(value)


def write_shards(folder: Path, tensors: Mapping[str, Tensor], path: Path, ranks: Ranks) -> dict[str, str]:
    """Write each process's part of the full or sharded tensors to one file; return the checksum of every file.

    All processes call this with a folder that all of them see; `path` is its final name, for messages.

    Raises:
        StorageError: a process could not write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(dict(tensors), storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:
        reasons = {str(failure[0]) for failure in error.failures.values()}
        raise StorageError(
            f"{path}: cannot be written: {'; '.join(sorted(reasons))}. What was stored before is intact. Free some "
            "space or give another folder with --out, one that every process sees, then run the same command again."
        ) from error
    ours = ranks.together(lambda: _checksums(folder, path, ranks))
    return {name: value for part in ranks.gather(ours) for name, value in part.items()}


def _checksums(folder: Path, path: Path, ranks: Ranks) -> dict[str, str]:
    """Return the checksums of this process's share of the files."""
    with storing(path):
        names = sorted(file.name for file in folder.iterdir())
        return {name: checksum(folder / name) for name in names[ranks.rank :: ranks.size]}


def read_shards(folder: Path, weight_of: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor that `write_shards` wrote: sharded like its weight if it has its shape, otherwise full."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(folder)
    found: dict[str, Tensor] = {}
    for key, stored in sorted(reader.read_metadata().state_dict_metadata.items()):
        weight = weight_of(key)
        assert isinstance(stored, TensorStorageMetadata)
        is_alike = stored.size == weight.shape
        found[key] = (
            torch.empty_like(weight) if is_alike else torch.empty(stored.size, dtype=stored.properties.dtype)
        )
    with warnings.catch_warnings():
        # torch warns when one process reads what several wrote, which is intended here.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(found, storage_reader=reader, no_dist=not dist.is_initialized())
    yield from found.items()
