"""Snapshots that a run restarts from: weights, optimiser and the rest of its state, each checked when it is read.

A snapshot is a folder `steps/NNNNNN` with `tensors.safetensors` and `state.json`, which holds the checksum of the
former and of itself. Nothing in it is pickled.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from retbench.training.files import DRAFT, atomic_folder, checksum

TENSORS = "tensors.safetensors"
STATE = "state.json"
_WEIGHT = "weight:"
_MOMENT = "optimizer:"


class DamagedSnapshotError(Exception):
    """A snapshot is not what was written."""


def gather(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors of a run by name: each weight, and what the optimiser keeps of it."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        tensors[_WEIGHT + name] = weight.detach()
        for kind, value in optimizer.state[weight].items():
            tensors[f"{_MOMENT}{name}:{kind}"] = value
    return tensors


@torch.no_grad()
def scatter(tensors: Mapping[str, Tensor], model: nn.Module, optimizer: Optimizer) -> None:
    """Put the tensors of `gather` back where they came from, in the layout of the memory there."""
    for name, weight in model.named_parameters():
        weight.copy_(tensors[_WEIGHT + name])
        prefix = f"{_MOMENT}{name}:"
        for key in (key for key in tensors if key.startswith(prefix)):
            kept = tensors[key]
            if kept.shape == weight.shape:
                kept = torch.zeros_like(weight, memory_format=torch.preserve_format).copy_(kept)
            optimizer.state[weight][key.removeprefix(prefix)] = kept


def save_snapshot(folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    """Write the snapshot of a step, on the disk when this returns.

    Raises:
        StorageError: it could not be written; those before it are intact.
    """
    with atomic_folder(folder / f"{step:06d}") as draft:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft / TENSORS)
        told = {"tensors_sha256": checksum(draft / TENSORS), "state": state}
        (draft / STATE).write_text(json.dumps({"sha256": _digest(told), **told}, indent=1), encoding="utf-8")


def load_snapshot(
    folder: Path, note: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The latest snapshot that is whole; None where there is none.

    Args:
        folder: That of all snapshots of a run.
        note: Told of each that is damaged.
    """
    for path in reversed(snapshot_paths(folder)):
        try:
            return _read(path)
        except DamagedSnapshotError as error:
            note(f"the snapshot {path} is damaged ({error}); the one before it is used, or the start.")
    return None


def prune(folder: Path, keep_last: int) -> None:
    """Remove all but the last snapshots, and what a process that died has left of one."""
    for path in snapshot_paths(folder)[:-keep_last]:
        shutil.rmtree(path)
    for path in folder.glob(f"{DRAFT}*"):
        shutil.rmtree(path)


def snapshot_paths(folder: Path) -> list[Path]:
    """Every snapshot of a run, the oldest first."""
    return sorted((path for path in folder.glob("[0-9]*") if path.is_dir()), key=lambda path: int(path.name))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One snapshot, checked."""
    try:
        told = json.loads((path / STATE).read_text(encoding="utf-8"))
        stated = told.pop("sha256")
        if stated != _digest(told):
            raise DamagedSnapshotError(f"{STATE} has another checksum than it states")
        if told["tensors_sha256"] != checksum(path / TENSORS):
            raise DamagedSnapshotError(f"{TENSORS} has another checksum than {STATE} states")
        return load_file(path / TENSORS), told["state"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedSnapshotError(f"{type(error).__name__}: {error}") from error


def _digest(told: dict[str, Any]) -> str:
    """SHA-256 of a JSON object."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
