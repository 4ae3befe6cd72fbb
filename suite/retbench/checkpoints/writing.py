"""Export of a model to the checkpoint format of another library: the inverse of reading it.

A format's `render` gives the configuration, and its plan, inverted, the tensors. A model is written only if the format
reads it back as the same model.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from retbench.architectures.configs import ModelConfig, default_backend
from retbench.checkpoints.format import CONFIG_NAME, Description, Plan, WeightPart
from retbench.checkpoints.loading import load_checkpoint
from retbench.checkpoints.reading import FORMATS, CheckpointInfo, open_checkpoint
from retbench.checkpoints.weights import FLOAT_DTYPES, SAFETENSORS_NAME, save_tensors
from retbench.data.tokenizers import load_tokenizer, locate_tokenizer, tokenizer_files
from retbench.data.vocabularies import BYTES, name_gpt2_class
from retbench.errors import CheckpointError, ConfigError, UnsupportedError, shown, unknown_name
from retbench.files import atomic_folder, sole_writer

WRITTEN = tuple(name for name, form in FORMATS.items() if form.render is not None)
"""Formats that models can be exported to."""


def export_checkpoint(info: CheckpointInfo, folder: Path, *, format: str = "auto") -> str:
    """Write a checkpoint in another format, with the files of its tokenizer if they are on this machine.

    Args:
        info: The checkpoint, in any format whose weights are read here.
        folder: A new or empty folder.
        format: A name in `WRITTEN`, or auto for the first that can hold the model.

    Returns:
        The name of the format.

    Raises:
        ConfigError: no such format; none can hold the model; the folder is not empty; the tokenizer cannot be read, or
            is not the one that the model was trained with.
        CheckpointError: the weights cannot be read.
        UnsupportedError: a package that reads the tokenizer is missing, or another process is writing the folder.
        StorageError: writing failed, and nothing is left in the folder.
    """
    if format != "auto" and format not in WRITTEN:
        raise unknown_name("format", format, ["auto", *WRITTEN], where="--format")
    with sole_writer(folder):
        form, raw, described = _choose(info, WRITTEN if format == "auto" else (format,))
        files = _tokenizer_files(info.tokenizer)
        dtype, widest = _stored_dtypes(info)
        model = load_checkpoint(info, dtype=widest, device="cpu", backend=default_backend(info.config))
        weights = {name: _narrowed(weight.detach(), dtype) for name, weight in model.named_parameters()}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        tensors = split_weights(FORMATS[form].plan(described, FORMATS[form].written, shapes), weights)
        raw = raw | {
            "torch_dtype": str(dtype).removeprefix("torch."),
            **_special_tokens(info.tokenizer, bool(files)),
        }
        text = json.dumps(raw, indent=2) + "\n"
        with atomic_folder(folder) as draft:
            for name, file in files.items():
                shutil.copyfile(file, draft / name)
            if files:
                _check_tokenizer(info, draft)
            if "vocab.json" in files:
                name_gpt2_class(draft / "vocab.json")
            save_tensors(tensors, draft / SAFETENSORS_NAME)
            (draft / CONFIG_NAME).write_text(text, encoding="utf-8")
    return form


def _stored_dtypes(info: CheckpointInfo) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype of most values of a checkpoint, and one that holds all of its values.

    Quantised values, which `load_checkpoint` refuses, count as float32.
    """
    stored = {entry.dtype for entry in open_checkpoint(info).entries.values()}
    most = info.weights_dtype if info.weights_dtype in FLOAT_DTYPES else "float32"
    found = [getattr(torch, name) for name in stored.intersection(FLOAT_DTYPES)]
    return getattr(torch, most), reduce(torch.promote_types, found, getattr(torch, most))


def _narrowed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight in a dtype if that holds its values exactly, else as it is."""
    narrow = weight.to(dtype)
    return narrow if torch.equal(narrow.to(weight.dtype), weight) else weight


def _special_tokens(tokenizer: str | None, is_here: bool) -> dict[str, int | None]:
    """Return the tokens that begin and end a text; null where the tokenizer is not known.

    Without these fields both libraries assume the tokens 1 and 2, and generation does not end at the model's own.
    """
    found = load_tokenizer(tokenizer) if tokenizer is not None and (is_here or tokenizer == BYTES) else None
    return {name: getattr(found, name, None) for name in ("bos_token_id", "eos_token_id")}


def _tokenizer_files(tokenizer: str | None) -> dict[str, Path]:
    """Return the files of a tokenizer by their names in an exported folder; none if it is not on this machine.

    Raises:
        ConfigError: its place holds no tokenizer.
    """
    if tokenizer in (None, BYTES):
        return {}
    try:
        place = locate_tokenizer(tokenizer)
    except (ConfigError, UnsupportedError):  # of another machine, or in a data folder that is not named
        return {}
    return tokenizer_files(place)


def _check_tokenizer(info: CheckpointInfo, folder: Path) -> None:
    """Raise ConfigError unless the tokenizer that is read from a folder is the model's own."""
    assert info.tokenizer is not None
    expected = info.tokenizer_fingerprint or load_tokenizer(info.tokenizer).fingerprint
    found = load_tokenizer(str(folder)).fingerprint
    if found != expected:
        raise ConfigError(
            f"{shown(info.source)}: its tokenizer has the fingerprint {expected}, and the files of "
            f"{shown(info.tokenizer)} have {found}. Restore those files."
        )


def _choose(info: CheckpointInfo, formats: tuple[str, ...]) -> tuple[str, dict[str, object], Description]:
    """Return the first format that reads a model back as it is, with the configuration and its description."""
    reason = ", which has no such model"
    for name in formats:
        form = FORMATS[name]
        raw = form.render(info) if form.render is not None else None
        if raw is None:
            continue
        try:
            described = form.describe(raw, Path(CONFIG_NAME))
        except (CheckpointError, ValueError):  # pydantic's ValidationError is a ValueError
            continue
        if described.config == info.config:
            return name, raw, described
        if described.config.variant == info.config.variant:
            reason = _differences(info.config, described.config, name)
    config = info.config
    raise ConfigError(
        f"{shown(info.source)}: a {config.architecture} of variant '{config.variant}' cannot be written as "
        f"{' or '.join(formats)}{reason}. Transformers of variant llama are written as llama, and RetNets of variant "
        "fla as fla if they have decay = 'eq8'."
    )


def _differences(ours: ModelConfig, theirs: ModelConfig, form: str) -> str:
    """Return the settings of a model that a format does not have: ": fla has decay = 'eq8', not 'paper'"."""
    first, second = (dict(_leaves(one.model_dump(mode="json"))) for one in (ours, theirs))
    changed = {
        name.rpartition(".")[2]: (first.get(name), second.get(name))
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    }
    return (
        f": {form} has {', '.join(f'{name} = {new!r}, not {old!r}' for name, (old, new) in changed.items())}"
    )


def _leaves(node: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested tables and lists with their dotted names."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(value, f"{place}.{name}")
    else:
        yield place, node


def split_weights(plan: Plan, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file: the inverse of `loading.decoder_rows`, for every tensor.

    Args:
        plan: The parts of every weight; none may have a `convert`, which has no inverse.
        weights: Parameters of the `Decoder` by name.
    """
    tensors: dict[str, Tensor] = {}
    for name, parts in plan.items():
        pieces = weights[name].split([part.shape[0] for part in parts])
        for part, rows in zip(parts, pieces, strict=True):
            tensors[part.name] = _as_stored(rows, part).contiguous()
    return tensors


def _as_stored(rows: Tensor, part: WeightPart) -> Tensor:
    """Return rows in the order of the file: the inverse of `loading.decoder_rows`."""
    assert part.convert is None
    if part.interleaved_heads is None:
        return rows.clone()  # safetensors refuses tensors that share memory
    reordered: Tensor = rows.unflatten(0, (part.interleaved_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return reordered
