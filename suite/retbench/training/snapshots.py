"""Snapshots that a run restarts from: weights, optimiser and the rest of its state, each checked before it is used.

A snapshot is a folder `steps/NNNNNN`: `state.json`, which holds the checksums of the other files and of itself, and the
tensors. One process writes them to `tensors.safetensors`; several write theirs side by side, as torch's distributed
checkpoint. Either can be restored by any number of processes. torch pickles the directory of the latter, which is read
once its checksum has been found right.
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
from retbench.training import shards
from retbench.training.ranks import ALONE, Ranks
from retbench.training.sharding import laid_out_as

TENSORS = "tensors.safetensors"
STATE = "state.json"
_WEIGHT = "weight:"
_MOMENT = "optimizer:"


class DamagedSnapshotError(Exception):
    """A snapshot is not what was written."""


def gather(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors of a run by name: each weight, and what the optimiser keeps of it; of a spread model, the shards."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        tensors[_WEIGHT + name] = weight.detach()
        for kind, value in optimizer.state[weight].items():
            tensors[f"{_MOMENT}{name}:{kind}"] = value
    return tensors


def save_snapshot(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], ranks: Ranks = ALONE
) -> None:
    """Write the snapshot of a step, on the disk when this returns.

    Args:
        folder: That of all snapshots of a run.
        step: Steps done.
        tensors: Of `gather`.
        state: What else the run depends on, as JSON; that of the first process is kept.
        ranks: The processes that the tensors are spread over; all of them call this.

    Raises:
        StorageError: it could not be written; those before it are intact.
    """
    path = folder / f"{step:06d}"
    draft = ranks.lead(lambda: open_draft(path))
    try:
        written = ranks.together(lambda: _write_tensors(draft, tensors, path, ranks))
        ranks.lead(lambda: _conclude(draft, path, written, state))
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write_tensors(draft: Path, tensors: Mapping[str, Tensor], path: Path, ranks: Ranks) -> dict[str, str]:
    """Write the tensors; the checksum of every file they are in."""
    if ranks.size > 1:
        return shards.write(draft, tensors, path, ranks)
    with storing(path):
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft / TENSORS)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        return {TENSORS: checksum(draft / TENSORS)}


def _conclude(draft: Path, path: Path, checksums: dict[str, str], state: dict[str, Any]) -> None:
    """Write the rest of a snapshot and move it to its place."""
    with storing(path):
        if checksums.keys() == {TENSORS}:
            told: dict[str, Any] = {"tensors_sha256": checksums[TENSORS], "state": state}
        else:
            told = {"files_sha256": checksums, "state": state}
        (draft / STATE).write_text(json.dumps({"sha256": _digest(told), **told}, indent=1), encoding="utf-8")
    put_in_place(draft, path)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that is whole.

    Attributes:
        path: Its folder.
        state: What was given beside the tensors.
    """

    path: Path
    state: dict[str, Any]

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put the tensors of `gather` back where they came from, in the layout and the shards that are there."""
        weights = dict(model.named_parameters())
        for key, value in self._tensors(weights):
            if key.startswith(_WEIGHT):
                weight = weights[key.removeprefix(_WEIGHT)]
                weight.copy_(laid_out_as(value, weight))
            else:
                name, _, kind = key.removeprefix(_MOMENT).rpartition(":")
                weight = weights[name]
                is_moment = value.shape == weight.shape
                kept = laid_out_as(value, weight) if is_moment else value.to(weight.device)
                optimizer.state[weight][kind] = kept

    def _tensors(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Each tensor by its name: whole, or in the shards of the weight that it belongs to."""
        if not (self.path / TENSORS).is_file():
            yield from shards.read(self.path, lambda key: weights[_weight_name(key)])
            return
        with safe_open(self.path / TENSORS, framework="pt") as file:
            for key in sorted(file.keys()):  # the same order in every process
                yield key, file.get_tensor(key)


def _weight_name(key: str) -> str:
    """The weight that a tensor of `gather` is, or is kept of."""
    if key.startswith(_WEIGHT):
        return key.removeprefix(_WEIGHT)
    return key.removeprefix(_MOMENT).rpartition(":")[0]


def find_snapshot(folder: Path, note: Callable[[str], None], ranks: Ranks = ALONE) -> Snapshot | None:
    """The latest snapshot that is whole; None where there is none.

    Args:
        folder: That of all snapshots of a run.
        note: Told of each that is damaged.
        ranks: The processes that will restore it; each checks a part of its files.
    """
    for path in ranks.lead(lambda: snapshot_paths(folder)[::-1]):
        state, problem = None, None
        try:
            state = _check(path, ranks)
        except DamagedSnapshotError as error:
            problem = str(error)
        problems = [each for each in ranks.gather(problem) if each is not None]
        if not problems:
            assert state is not None
            return Snapshot(path, state)
        note(f"the snapshot {path} is damaged ({problems[0]}); the one before it is used, or the start.")
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


def _check(path: Path, ranks: Ranks) -> dict[str, Any]:
    """The state in a snapshot, once it and this process's part of the files are found as they were written."""
    try:
        told = json.loads((path / STATE).read_text(encoding="utf-8"))
        stated = told.pop("sha256")
        if stated != _digest(told):
            raise DamagedSnapshotError(f"{STATE} has another checksum than it states")
        files = told.get("files_sha256") or {TENSORS: told["tensors_sha256"]}
        for name in sorted(files)[ranks.rank :: ranks.size]:
            if files[name] != checksum(path / name):
                raise DamagedSnapshotError(f"{name} has another checksum than {STATE} states")
        state: dict[str, Any] = told["state"]
        return state
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedSnapshotError(f"{type(error).__name__}: {error}") from error


def _digest(told: dict[str, Any]) -> str:
    """SHA-256 of a JSON object."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
