"""Snapshots that a run continues from: weights, optimiser and state, whose checksums are verified before use.

A snapshot is a folder `steps/NNNNNN`: the tensors, and `state.json` with the checksums of all files and of itself. One
process writes `tensors.safetensors`; of several processes each writes its rows of the sharded tensors to a file of its
own, and the first one what is not sharded. Any number of processes can restore either.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from retbench.checkpoints.weights import save_tensors
from retbench.errors import CheckpointError, ConfigError, shown
from retbench.files import DRAFT, checksum, inside, open_draft, put_in_place, storing
from retbench.parsing import parse_json
from retbench.training.ranks import ALONE, Ranks
from retbench.training.sharding import match_layout, own_rows

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
        folder: Folder of all snapshots of a run, which all processes see.
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
        sums = ranks.gather(ranks.together(lambda: _write_tensors(draft, tensors, path, ranks)))
        ranks.lead(lambda: _write_state(draft, path, dict(sums), state))
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write_tensors(draft: Path, tensors: Mapping[str, Tensor], path: Path, ranks: Ranks) -> tuple[str, str]:
    """Write this process's part of the tensors; return the name of its file and the checksum."""
    name = TENSORS if ranks.size == 1 else f"tensors-{ranks.rank:05d}.safetensors"
    parts = {key: own_rows(tensor, leads=ranks.leads).contiguous() for key, tensor in tensors.items()}
    with storing(path):
        save_tensors({key: part for key, part in parts.items() if part.numel()}, draft / name)
        return name, checksum(draft / name)


def _write_state(draft: Path, path: Path, checksums: dict[str, str], state: dict[str, Any]) -> None:
    """Write the state and the checksums, and move the snapshot to its final path."""
    content = {"files_sha256": checksums, "state": state}
    with storing(path):
        text = json.dumps({"sha256": _digest(content), **content}, indent=1)
        (draft / STATE).write_text(text, encoding="utf-8")
    put_in_place(draft, path)


@dataclass(frozen=True)
class Snapshot:
    """An undamaged snapshot: its folder, its files of tensors, and the state that was stored with them."""

    path: Path
    files: tuple[str, ...]
    state: dict[str, Any]

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Copy the stored tensors to the model and the optimiser, in the layout and shards of the model.

        Raises:
            CheckpointError: they are not those of this model; the model may have been overwritten in part.
        """
        weights = dict(model.named_parameters())
        missing = set(weights)
        for key, value in self._tensors():
            name, kind = _split_key(key)
            weight = weights.get(name)
            has_its_shape = weight is not None and value.shape == weight.shape
            if weight is None or not (has_its_shape or (kind is not None and value.dim() == 0)):
                raise self.misfit(f"a tensor {shown(key)} of shape {tuple(value.shape)}")
            if kind is None:
                missing.discard(name)
                weight.copy_(match_layout(value, weight))
            else:
                moment = match_layout(value, weight) if has_its_shape else value.to(weight.device)
                optimizer.state[weight][kind] = moment
        if missing:
            raise self.misfit(f"no weight {min(missing)}")

    def misfit(self, content: str) -> CheckpointError:
        """Return the error for a snapshot that was written as it is, but not by this run."""
        return CheckpointError(
            f"{self.path}: this snapshot has {content}, so it is not of this run. Remove it, or train anew with "
            "--fresh."
        )

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each full tensor by name, in the same order in every process."""
        holders: dict[str, list[Any]] = {}
        try:
            with ExitStack() as stack:
                for name in self.files:
                    file = stack.enter_context(safe_open(self.path / name, framework="pt"))
                    for key in file.keys():  # noqa: SIM118 - not a mapping
                        holders.setdefault(key, []).append(file)
                for key in sorted(holders):
                    parts = [file.get_tensor(key) for file in holders[key]]
                    yield key, parts[0] if len(parts) == 1 else torch.cat(parts)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise self.misfit(f"tensors that cannot be read ({error})") from error


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
        found, problem = None, None
        try:
            found = _verify(path, ranks)
        except DamagedSnapshotError as error:
            problem = str(error)
        problems = [each for each in ranks.gather(problem) if each is not None]
        if not problems:
            return found
        note(
            f"the snapshot {path} is damaged ({problems[0]}); training continues from the one before, or anew."
        )
    return None


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the last snapshots, and unfinished ones that a killed process has left."""
    for path in [*snapshot_paths(folder)[:-keep_last], *folder.glob(f"{DRAFT}*")]:
        shutil.rmtree(path, ignore_errors=True)


def snapshot_paths(folder: Path) -> list[Path]:
    """Return every snapshot of a run, the oldest first."""
    found = (path for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())
    return sorted(found, key=lambda path: int(path.name))


def _verify(path: Path, ranks: Ranks) -> Snapshot:
    """Return a snapshot after verifying its state and this process's share of the files."""
    try:
        content = parse_json((path / STATE).read_bytes())
        if content.pop("sha256") != _digest(content):
            raise DamagedSnapshotError(f"{STATE} has another checksum than it states")
        files = content.get("files_sha256") or {TENSORS: content["tensors_sha256"]}  # the latter until 0.1
        for name in sorted(files)[ranks.rank :: ranks.size]:
            file = inside(path, name)
            if file.suffix != ".safetensors" or not file.is_file():
                raise DamagedSnapshotError(f"{shown(name)} is not a file of tensors that this version reads")
            if files[name] != checksum(file):
                raise DamagedSnapshotError(f"{name} has another checksum than {STATE} states")
        return Snapshot(path, tuple(sorted(files)), dict(content["state"]))
    except (OSError, ConfigError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedSnapshotError(f"{type(error).__name__}: {error}") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
