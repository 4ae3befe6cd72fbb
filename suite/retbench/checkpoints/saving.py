"""Writing a checkpoint so that there is always a whole one: beside, flushed to the disk, then moved into place."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retbench.checkpoints import native
from retbench.checkpoints.config_file import CONFIG_NAME, read_json
from retbench.checkpoints.fingerprints import fingerprint_tensors
from retbench.checkpoints.weights import SAFETENSORS_NAME
from retbench.errors import CheckpointError, ConfigError, StorageError
from retbench.files import flush

if TYPE_CHECKING:
    from torch import Tensor

    from retbench.architectures.configs import ModelConfig
    from retbench.models.decoder import Decoder


def save_checkpoint(
    folder: Path,
    model: "Decoder",
    *,
    tokenizer: str | None = None,
    tokenizer_fingerprint: str | None = None,
    context_len: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Write a model to a folder: all of it or nothing.

    An earlier checkpoint there stays until the new one is whole; were the machine to stop in the instant between the
    two moves, the earlier one would be beside it, its name with a dot before and `.replaced` behind.

    Args:
        folder: Made anew; or a checkpoint of ours, which is replaced.
        model: Its weights are stored as they are, in their dtype.
        tokenizer: Name or path of the tokenizer that it was trained with.
        tokenizer_fingerprint: Of that tokenizer.
        context_len: Tokens of the longest sequence that it was trained on.
        metadata: Anything else worth keeping, as JSON.

    Returns:
        The fingerprint of the weights.

    Raises:
        ConfigError: `folder` holds something else than a checkpoint of ours.
        StorageError: it could not be written (disk full, no permission); what was there before is intact.
    """
    return save_weights(
        folder,
        model.config,
        {name: weight.detach() for name, weight in model.named_parameters()},
        tokenizer=tokenizer,
        tokenizer_fingerprint=tokenizer_fingerprint,
        context_len=context_len,
        metadata=metadata,
    )


def save_weights(
    folder: Path,
    model: "ModelConfig",
    weights: "Mapping[str, Tensor]",
    *,
    tokenizer: str | None = None,
    tokenizer_fingerprint: str | None = None,
    context_len: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """`save_checkpoint` of the weights of a `Decoder` by name, where no process has the model in one piece."""
    folder = Path(os.path.abspath(folder))
    _require_replaceable(folder)
    tensors = {name: weight.cpu().contiguous() for name, weight in weights.items()}
    fingerprint = fingerprint_tensors(sorted(tensors.items()))
    config = native.NativeConfig(
        config=model,
        context_len=context_len,
        tokenizer=tokenizer,
        tokenizer_fingerprint=tokenizer_fingerprint,
        weights_fingerprint=fingerprint,
        metadata=dict(metadata or {}),
    )
    text = json.dumps(config.model_dump(), indent=2, allow_nan=False) + "\n"
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        _write(partial, tensors, text)
        _move(partial, folder)
    except OSError as error:
        raise StorageError(
            f"{folder}: the checkpoint could not be written: {error}. What was there before is intact; free some "
            "space, or give another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return fingerprint


def _require_replaceable(folder: Path) -> None:
    """ConfigError where a folder holds what is not ours to replace."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        is_ours = native.recognises(read_json(folder / CONFIG_NAME))
    except CheckpointError:
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"{folder}: holds something else than a checkpoint of retbench. Give another folder."
        )


def _write(partial: Path, tensors: "dict[str, Tensor]", config: str) -> None:
    """Both files in a new folder, on the disk when this returns; OSError where they cannot be."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shutil.rmtree(partial, ignore_errors=True)  # of a process that had this number and was killed
    partial.mkdir(parents=True)
    try:
        save_file(tensors, partial / SAFETENSORS_NAME, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    (partial / CONFIG_NAME).write_text(config, encoding="utf-8")
    for path in (partial / SAFETENSORS_NAME, partial / CONFIG_NAME, partial):
        flush(path)


def _move(partial: Path, folder: Path) -> None:
    """Put the new folder in the place of the old one, if there is one."""
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
    if folder.exists():
        folder.rename(replaced)
    try:
        partial.rename(folder)
    except OSError:
        if replaced.exists():
            replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    flush(folder.parent)
