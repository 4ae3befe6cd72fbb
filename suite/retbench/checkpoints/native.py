"""retbench's own checkpoints: `model.safetensors` under the model's own names, and a `config.json`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, field_validator

from retbench.checkpoints.format import CONFIG_NAME, Description, Format, WeightPart, read_json
from retbench.checkpoints.weights import SAFETENSORS_NAME, fingerprint_tensors, save_tensors
from retbench.errors import CheckpointError, ConfigError
from retbench.files import atomic_folder

if TYPE_CHECKING:
    from torch import Tensor

NAME: Literal["retbench"] = "retbench"
VERSION: Literal[2] = 2


class TrainingNotes(BaseModel):
    """The notes of `retbench train` that an evaluation reads."""

    num_tokens: int | None = None
    corpus: str | None = None
    corpus_fingerprint: str | None = None


class NativeConfig(Description):
    """Contents of `config.json`."""

    format: Literal["retbench"] = NAME
    format_version: Literal[1, 2] = VERSION
    """1: the model is one flat table, as in records of that time."""
    tokenizer: str | None
    tokenizer_fingerprint: str | None
    weights_fingerprint: str

    @field_validator("metadata")
    @classmethod
    def _notes_have_their_types(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        if "training_fingerprint" in metadata:
            TrainingNotes.model_validate(metadata, strict=True)
        return metadata


def describe(raw: dict[str, Any], path: Path) -> Description:
    """Read a configuration; CheckpointError if it is invalid or of a later version."""
    version = raw.get("format_version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"{path}: format_version is {version}, this retbench reads up to {VERSION}. Use a newer one."
        )
    stored = NativeConfig.model_validate(raw)
    return Description(**{name: getattr(stored, name) for name in Description.model_fields})


FORMAT = Format(
    recognises=lambda raw: raw.get("format") == NAME,
    describe=describe,
    plan=lambda described, stored, ours: {name: (WeightPart(name, shape),) for name, shape in ours.items()},
    ignored=r"(?!)",  # matches nothing: every stored tensor is a weight
)


def save_checkpoint(folder: Path, described: Description, weights: "Mapping[str, Tensor]") -> str:
    """Write a model to a folder: all of it or nothing.

    An earlier checkpoint there stays until the new one is complete.

    Args:
        folder: A new folder, or a checkpoint in this format, which is replaced.
        described: The model, its tokenizer and metadata, whose values must have a form in JSON.
        weights: Parameters of the `Decoder` by name, stored in their dtype.

    Returns:
        The fingerprint of the weights.

    Raises:
        ConfigError: `folder` holds anything other than a checkpoint in this format.
        StorageError: writing failed (disk full, no permission); the earlier content is intact.
    """
    folder = Path(os.path.abspath(folder))
    _require_replaceable(folder)
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    fingerprint = fingerprint_tensors(sorted(tensors.items()))
    stored = NativeConfig(**dict(described) | {"weights_fingerprint": fingerprint})
    text = json.dumps(stored.model_dump(exclude={"tied_embeddings"}), indent=2, allow_nan=False) + "\n"
    with atomic_folder(folder) as draft:
        save_tensors(tensors, draft / SAFETENSORS_NAME)
        (draft / CONFIG_NAME).write_text(text, encoding="utf-8")
    return fingerprint


def _require_replaceable(folder: Path) -> None:
    """Raise ConfigError if a folder holds anything other than a checkpoint in this format."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        is_ours = FORMAT.recognises(read_json(folder / CONFIG_NAME))
    except CheckpointError:
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"{folder}: holds files other than a checkpoint of retbench, which are not overwritten. Give "
            "another folder."
        )
