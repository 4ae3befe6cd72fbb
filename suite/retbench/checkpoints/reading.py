"""Description of a checkpoint from its location, its configuration and the headers of its weights. No torch.

A checkpoint is a path, a path below the data folder, or a repository on the Hugging Face hub. A repository is read at
one commit: that of `--revision`, else its pinned commit, else today's `main`. The commit is recorded.
"""

import re
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retbench.architectures.registry import architectures
from retbench.checkpoints import llama2c, native
from retbench.checkpoints.format import CONFIG_NAME, Description, Format, read_json
from retbench.checkpoints.gguf import SUFFIX as GGUF_SUFFIX
from retbench.checkpoints.weights import (
    PICKLE_SUFFIXES,
    StoredWeights,
    find_weight_files,
    open_weights,
    refuse_pickle,
)
from retbench.data import data_folder, hub
from retbench.data.tokenizers import find_tokenizer_file
from retbench.errors import CheckpointError, ConfigError, UnsupportedError, shown, unknown_name
from retbench.strict import reason_of

LLAMA2C = "llama2c"
FINAL = "final"
"""Name of the checkpoint in the folder of a training run."""
PATTERNS = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt")
"""Files to download: never a pickle, and no code unless it is asked for."""
CODE = ("*.py",)

PINNED_REVISIONS = {
    "fla-hub/retnet-1.3B-100B": "7fddefc4d5e196a8d1f076bb7612d54321b3effe",
    "fla-hub/transformer-1.3B-100B": "d6f66f4181fa669e5863327815b44533e3a395e7",
    "fla-hub/transformer-2.7B-100B": "e29b06c913e05827bfb534844267c8d9f673feda",
}
"""Commit at which each public checkpoint is read. The models were trained alike on 100B tokens of SlimPajama.

fla-hub/retnet-2.7B-100B is absent: no commit is known to be that of the published numbers.
"""

MOST_FAULTS = 5
"""Most invalid fields that a message names."""

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[^@\s]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class CheckpointInfo(Description):
    """A checkpoint on this machine whose configuration was read; its weights are still on disk."""

    format: str
    """Name in `FORMATS`."""
    weights_dtype: str | None = None
    """torch's name of the dtype of most stored values; None if a pickle holds them."""
    path: Path
    """The folder, or the file of a checkpoint that is one file."""
    source: str
    """Name under which it was requested."""
    revision: str | None = None
    """Commit on the hub; None for a local checkpoint."""


def _known_formats() -> dict[str, Format]:
    """Collect retbench's own format, then those of each architecture, by the names of their modules."""
    paths = [path for architecture in architectures().values() for path in architecture.formats]
    return {native.NAME: native.FORMAT} | {
        path.rpartition(".")[2]: import_module(path).FORMAT for path in paths
    }


FORMATS: dict[str, Format] = _known_formats()


def read_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    format: str = "auto",
    data_dir: Path | None = None,
    with_code: bool = False,
) -> CheckpointInfo:
    """Find a checkpoint and read its description; its weights stay on disk.

    Args:
        name: A folder, a file, or the folder of a run of `retbench train`; a path below the data folder; or
            OWNER/REPOSITORY[@REVISION] on the hub.
        revision: Commit, branch or tag of a repository on the hub.
        format: A name in `FORMATS`, or auto to detect it.
        data_dir: The data folder; RETBENCH_DATA when None.
        with_code: Download the Python code of a repository too; nothing is run here.

    Raises:
        ConfigError: there is no such checkpoint or format.
        CheckpointError: it is damaged, or of a model that this package does not have.
        UnsupportedError: it is on the hub, which cannot be reached.
    """
    if format not in FORMATS and format != "auto":
        raise unknown_name("format", format, ["auto", *FORMATS], where="--format")
    path, commit = locate(name, revision=revision, data_dir=data_dir, with_code=with_code)
    if path.is_file() and path.name == CONFIG_NAME:
        raise CheckpointError(f"{path}: is the configuration of a checkpoint. Give its folder: {path.parent}")
    if path.suffix == GGUF_SUFFIX:
        raise CheckpointError(
            f"{path}: is a GGUF file. Write it as a folder first: retbench export {path} FOLDER"
        )
    if not _config_path(path).is_file() and _config_path(path / FINAL).is_file():
        path = path / FINAL
    config_path = _config_path(path)
    is_bare = not config_path.is_file()
    if format == LLAMA2C or (format == "auto" and is_bare):
        format, raw = LLAMA2C, {}
        config_path = path = _find_llama2c(path)
    elif is_bare:
        raise _without_config(path)
    else:
        raw = read_json(config_path)
        format = _recognise(raw, config_path) if format == "auto" else format
        if path.is_file() and FORMATS[format].library is not None:
            raise CheckpointError(
                f"{path}: is one file of a checkpoint of '{format}'. Give its folder: {path.parent}"
            )
    try:
        described = FORMATS[format].describe(raw, config_path)
    except ValidationError as error:  # fields are missing, of another type, or contradict each other
        _check_format(format, raw, config_path)
        raise _invalid(error, config_path) from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # from a recipe, for absurd sizes
        raise CheckpointError(
            f"{config_path}: not a configuration that can be read here: {type(error).__name__}: {error}."
        ) from error
    fields = dict(described) | {"tokenizer": described.tokenizer or _find_tokenizer(path)}
    dtype = _stored_dtype(format, path)
    return CheckpointInfo(
        **fields, format=format, weights_dtype=dtype, path=path, source=name, revision=commit
    )


def _check_format(format: str, raw: dict[str, Any], config_path: Path) -> None:
    """Raise ConfigError if a configuration that cannot be read in one format is recognised as of another."""
    try:
        recognised = _recognise(raw, config_path)
    except CheckpointError:
        return
    if recognised != format:
        raise ConfigError(
            f"{config_path}: not of format '{format}', but '{recognised}'. Leave --format out, or give that one."
        )


def locate(
    name: str, *, revision: str | None = None, data_dir: Path | None = None, with_code: bool = False
) -> tuple[Path, str | None]:
    """Return the path of a checkpoint, downloaded from the hub if it is not local, and its commit on the hub.

    Arguments and errors as of `read_checkpoint`. The prefix `hub:` of a name skips the search for a path.
    """
    if not name.startswith(hub.PREFIX):
        try:
            path = data_folder.find(name, kind="checkpoint", data_dir=data_dir)
        except ConfigError:
            if not _REPOSITORY.fullmatch(name):
                raise
        else:
            if revision is not None:
                raise ConfigError(
                    f"--revision {revision}: '{name}' is local, at {path}, and has no revisions."
                )
            return path, None
    asked = hub.parse_name(hub.PREFIX + name.removeprefix(hub.PREFIX), revision)
    at = asked.revision or PINNED_REVISIONS.get(asked.repo)
    try:  # the hub's cache has the folder under the name of the commit
        path = hub.download_files(
            name, asked._replace(revision=at), (*PATTERNS, *CODE) if with_code else PATTERNS
        )
    except UnsupportedError as error:
        option = f" --revision {at}" if at else ""
        raise UnsupportedError(
            f"{error} On a machine with a network: hf download {asked.repo}{option} --local-dir FOLDER. Then give "
            f"FOLDER in place of '{name}'."
        ) from error
    return path, path.name if _COMMIT.fullmatch(path.name) else at


def _config_path(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / CONFIG_NAME


def _find_llama2c(path: Path) -> Path:
    """Return the file of a llama2.c model, which has no configuration; CheckpointError if there is none."""
    found = llama2c.find_model(path)
    if found is None:
        raise _without_config(path)
    return found


def _without_config(path: Path) -> CheckpointError:
    """Return an error that says what to give in place of a folder without a configuration."""
    runs = sorted(one.parent.name for one in path.glob(f"*/{FINAL}"))
    if runs:
        return CheckpointError(f"{path}: it holds training runs. Give one of them: {', '.join(runs)}.")
    return CheckpointError(
        f"{_config_path(path)}: there is no such file, which describes the weights beside it. Checkpoints of retbench, "
        "fla and transformers have one. For a state dict of torchscale, write one with the fields of its RetNetConfig "
        "(decoder_embed_dim, decoder_retention_heads, ..., activation_fn)."
    )


def _recognise(raw: Mapping[str, Any], path: Path) -> str:
    """Return the name of a configuration's format; CheckpointError if it is unknown."""
    for name, form in FORMATS.items():
        if form.recognises(raw):
            return name
    said = {key: raw[key] for key in ("model_type", "architectures") if key in raw}
    found = shown(said) if said else "neither model_type nor architectures is given"
    raise CheckpointError(
        f"{path}: a model of unknown format: {found}. Formats: {', '.join(FORMATS)}; force one with --format. A model "
        'that transformers has is measured as it is by `retbench run --model`, or architecture = "hf" in its table. It '
        "writes text by `retbench generate --format hf`."
    )


def _invalid(error: ValidationError, path: Path) -> CheckpointError:
    """Build a CheckpointError that names the first invalid fields, their values, and the expected ones."""
    lines = []
    for fault in error.errors(include_url=False)[:MOST_FAULTS]:
        name = ".".join(str(part) for part in fault["loc"])
        found = "" if fault["type"] == "missing" or not name else f" (found {shown(fault['input'])})"
        lines.append(f"{name + ': ' if name else ''}{reason_of(fault)}{found}")
    return CheckpointError(f"{path}: not a configuration that can be read here: {'; '.join(lines)}.")


def _find_tokenizer(path: Path) -> str | None:
    """Return the path of the tokenizer next to the weights, if there is exactly one."""
    try:
        return str(find_tokenizer_file(path if path.is_dir() else path.parent))
    except ConfigError:
        return None


def _stored_dtype(format: str, path: Path) -> str | None:
    """Return the dtype of most stored values; None for a pickle, which is not opened."""
    if format == LLAMA2C:
        return "float32"
    if find_weight_files(path)[0].suffix in PICKLE_SUFFIXES:
        return None
    values: Counter[str] = Counter()
    for entry in open_weights(path, allow_pickle=False).entries.values():
        values[entry.dtype] += prod(entry.shape)
    return values.most_common(1)[0][0] if values else None


def open_checkpoint(info: CheckpointInfo, *, allow_pickle: bool = False) -> StoredWeights:
    """Open the tensors of a checkpoint; errors as in `open_weights`."""
    if info.format == LLAMA2C:
        return llama2c.open_model(info.path)
    return open_weights(info.path, allow_pickle=allow_pickle)


def check_no_pickle(info: CheckpointInfo) -> None:
    """Raise ConfigError if the weights are a pickle, which only some commands have an option to read."""
    if info.format != LLAMA2C:
        refuse_pickle(find_weight_files(info.path)[0])
