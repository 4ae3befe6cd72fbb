"""The tensors of a snapshot that several processes write together: torch's distributed checkpoint."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from retbench.errors import StorageError
from retbench.files import checksum, storing
from retbench.training.ranks import Ranks


def write(folder: Path, tensors: Mapping[str, Tensor], path: Path, ranks: Ranks) -> dict[str, str]:
    """Write what each process has of the tensors to one file each; all of them call this.

    Args:
        folder: Where to; one that all processes see.
        tensors: By name, each whole or in shards.
        path: What it will be called, for messages.
        ranks: The processes.

    Returns:
        The checksum of every file.

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
    """Those of this process's part of the files."""
    with storing(path):
        names = sorted(file.name for file in folder.iterdir())
        return {name: checksum(folder / name) for name in names[ranks.rank :: ranks.size]}


def read(folder: Path, weight_of: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor by name: one of its weight's shape in the shards of the weight, any other whole.

    Args:
        folder: What `write` was given, by any number of processes.
        weight_of: The weight that the tensor of a name belongs to.
    """
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
        # torch warns of one process that takes up what several wrote, which is what is wanted.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(found, storage_reader=reader, no_dist=not dist.is_initialized())
    yield from found.items()
