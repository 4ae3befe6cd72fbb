"""Snapshots that a run continues from: weights, optimiser and state, whose checksums are verified before use.

A snapshot is a folder `steps/NNNNNN`: the tensors, and `state.json` with the checksums of all files and of itself. One
process writes the tensors to `tensors.safetensors`; several write a distributed checkpoint of torch. Any number of
processes can restore either. torch pickles the metadata of the latter, which is read only if its checksum is right.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from retbench.files import DRAFT, checksum, open_draft, put_in_place, storing
from retbench.training.ranks import ALONE, Ranks
from retbench.training.sharding import match_layout, read_shards, write_shards

TENSORS = "tensors.safetensors"
STATE = "state.json"
_WEIGHT = "weight:"
_MOMENT = "optimizer:"


class DamagedSnapshotError(Exception):
    """The content of a snapshot differs from what was written."""


def gather(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return all tensors of a run by name: each weight and its optimiser state, or this process's shards of them."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        tensors[_WEIGHT + name] = weight.detach()
        for kind, value in optimizer.state[weight].items():
            tensors[f"{_MOMENT}{name}:{kind}"] = value
    return tensors


def save_snapshot(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], ranks: Ranks = ALONE
) -> None:
    """Write the snapshot of a step and flush it to the disk; all processes call this.

    Args:
        folder: Folder of all snapshots of a run.
        step: Number of steps done.
        tensors: Result of `gather`.
        state: The rest of the run's state, as JSON; the first process writes its own.
        ranks: The processes that the tensors are sharded over.

    Raises:
        StorageError: it could not be written; earlier snapshots are intact.
    """
    path = folder / f"{step:06d}"
    draft = ranks.lead(lambda: open_draft(path))
    try:
        written = ranks.together(lambda: _write_tensors(draft, tensors, path, ranks))
        ranks.lead(lambda: _write_state(draft, path, written, state))
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write_tensors(draft: Path, tensors: Mapping[str, Tensor], path: Path, ranks: Ranks) -> dict[str, str]:
    """Write the tensors and return the checksum of every file."""
    if ranks.size > 1:
        return write_shards(draft, tensors, path, ranks)
    with storing(path):
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft / TENSORS)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        return {TENSORS: checksum(draft / TENSORS)}


def _write_state(draft: Path, path: Path, checksums: dict[str, str], state: dict[str, Any]) -> None:
    """Write the state and the checksums, and move the snapshot to its final path."""
    single = checksums.keys() == {TENSORS}
    sums: dict[str, Any] = {"tensors_sha256": checksums[TENSORS]} if single else {"files_sha256": checksums}
    content = {**sums, "state": state}
    with storing(path):
        text = json.dumps({"sha256": _digest(content), **content}, indent=1)
        (draft / STATE).write_text(text, encoding="utf-8")
    put_in_place(draft, path)


@dataclass(frozen=True)
class Snapshot:
    """An undamaged snapshot: its folder, and the state that was stored with the tensors."""

    path: Path
    state: dict[str, Any]

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Copy the stored tensors to the model and the optimiser, in the layout and shards of the model."""
        weights = dict(model.named_parameters())
        for key, value in self._tensors(weights):
            name, kind = _split_key(key)
            weight = weights[name]
            if kind is None:
                weight.copy_(match_layout(value, weight))
            else:
                is_moment = value.shape == weight.shape
                optimizer.state[weight][kind] = (
                    match_layout(value, weight) if is_moment else value.to(weight.device)
                )

    def _tensors(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor by name: full, or sharded like the weight that it belongs to."""
        if not (self.path / TENSORS).is_file():
            yield from read_shards(self.path, lambda key: weights[_split_key(key)[0]])
            return
        with safe_open(self.path / TENSORS, framework="pt") as file:
            for key in sorted(file.keys()):  # the same order in every process
                yield key, file.get_tensor(key)


def _split_key(key: str) -> tuple[str, str | None]:
    """Return the weight that a tensor of `gather` belongs to, and the kind of its optimiser state, if it is one."""
    if key.startswith(_WEIGHT):
        return key.removeprefix(_WEIGHT), None
    name, _, kind = key.removeprefix(_MOMENT).rpartition(":")
    return name, kind


def find_snapshot(folder: Path, note: Callable[[str], None], ranks: Ranks = ALONE) -> Snapshot | None:
    """Return the latest undamaged snapshot of a run, or None; `note` gets a message about each damaged one.

    Each process verifies its share of the files.
    """
    for path in ranks.lead(lambda: snapshot_paths(folder)[::-1]):
        state, problem = None, None
        try:
            state = _verify(path, ranks)
        except DamagedSnapshotError as error:
            problem = str(error)
        problems = [each for each in ranks.gather(problem) if each is not None]
        if not problems:
            assert state is not None
            return Snapshot(path, state)
        note(
            f"the snapshot {path} is damaged ({problems[0]}); training continues from the one before, or anew."
        )
    return None


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the last snapshots, and unfinished ones that a killed process has left."""
    for path in [*snapshot_paths(folder)[:-keep_last], *folder.glob(f"{DRAFT}*")]:
        shutil.rmtree(path)


def snapshot_paths(folder: Path) -> list[Path]:
    """Return every snapshot of a run, the oldest first."""
    return sorted((path for path in folder.glob("[0-9]*") if path.is_dir()), key=lambda path: int(path.name))


def _verify(path: Path, ranks: Ranks) -> dict[str, Any]:
    """Return the state of a snapshot after verifying it and this process's share of the files."""
    try:
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
        if content.pop("sha256") != _digest(content):
            raise DamagedSnapshotError(f"{STATE} has another checksum than it states")
        files = content.get("files_sha256") or {TENSORS: content["tensors_sha256"]}
        for name in sorted(files)[ranks.rank :: ranks.size]:
            if files[name] != checksum(path / name):
                raise DamagedSnapshotError(f"{name} has another checksum than {STATE} states")
        state: dict[str, Any] = content["state"]
        return state
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedSnapshotError(f"{type(error).__name__}: {error}") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
