"""The tensors in weight files: what there is, known from the headers, and each read when it is wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from retbench.checkpoints.config_file import read_json
from retbench.checkpoints.mapping import Shape
from retbench.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS_NAME = "model.safetensors"
INDEX_NAME = f"{SAFETENSORS_NAME}.index.json"
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin"})

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the dtypes that weights may have, and torch's."""


class Entry(NamedTuple):
    """A tensor in a file."""

    dtype: str
    """torch's name; the file's own where weights cannot have it."""
    shape: Shape
    path: Path


class Weights(Protocol):
    """Tensors by name."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every tensor there is."""

    def read(self, name: str) -> "Tensor":
        """One of them, on the CPU, as it is stored."""


class SafetensorsWeights:
    """One or more safetensors files.

    Args:
        paths: The files.
        promised: The names that an index says are in them.

    Raises:
        CheckpointError: a file is truncated or no safetensors file, or a promised tensor is in none.
    """

    def __init__(self, paths: tuple[Path, ...], promised: frozenset[str] = frozenset()) -> None:
        self.entries: dict[str, Entry] = {}
        for path in paths:
            self.entries.update(_read_header(path))
        absent = sorted(promised - self.entries.keys())
        if absent:
            raise CheckpointError(
                f"{paths[0].with_name(INDEX_NAME)}: promises the tensor '{absent[0]}'"
                f"{f' and {len(absent) - 1} more' if len(absent) > 1 else ''}, which no file beside it has."
            )

    def read(self, name: str) -> "Tensor":
        """A tensor as it is stored."""
        from safetensors import safe_open

        with safe_open(self.entries[name].path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def _read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file, without reading any."""
    from safetensors import SafetensorError, safe_open

    entries = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                view = file.get_slice(name)
                dtype = str(view.get_dtype())
                entries[name] = Entry(_DTYPES.get(dtype, dtype), tuple(view.get_shape()), path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: is not a whole safetensors file ({error}). Copy or download it again."
        ) from error
    return entries


class PickledWeights:
    """A state dict that torch.save wrote, read with `weights_only`: nothing but tensors and plain containers.

    Args:
        path: The file; it may hold the state dict itself, or under the key `model` or `state_dict`.

    Raises:
        CheckpointError: the file holds anything else.
    """

    def __init__(self, path: Path) -> None:
        import pickle

        import torch

        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"{path}: holds something else than a state dict of tensors ({reason})."
            ) from error
        self._tensors = _state_dict(found, path)
        self.entries = {
            name: Entry(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), path)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> "Tensor":
        """A tensor as it is stored."""
        return self._tensors[name]


def _state_dict(found: Any, path: Path) -> "dict[str, Tensor]":
    """The tensors by name in what a pickle held."""
    from torch import Tensor

    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: holds something else than a state dict of tensors.")
    return {str(name): tensor for name, tensor in found.items()}


def find_weight_files(path: Path) -> tuple[Path, ...]:
    """The weight files of a checkpoint: `path` itself where it is a file, else those of the folder.

    safetensors come first: one file, or those of an index; then a pickle.

    Raises:
        CheckpointError: there are none, or it is not clear which.
    """
    if path.is_file():
        return (path,)
    if (path / SAFETENSORS_NAME).is_file():
        return (path / SAFETENSORS_NAME,)
    if (path / INDEX_NAME).is_file():
        names = sorted(set(_weight_map(path / INDEX_NAME).values()))
        absent = [name for name in names if not (path / name).is_file()]
        if absent:
            raise CheckpointError(f"{path / INDEX_NAME}: names {', '.join(absent)}, which is not beside it.")
        return tuple(path / name for name in names)
    for suffixes in ({".safetensors"}, PICKLE_SUFFIXES):
        found = sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file())
        if len(found) > 1:
            raise CheckpointError(
                f"{path}: holds several weight files ({', '.join(file.name for file in found)}). Give the path of one."
            )
        if found:
            return tuple(found)
    raise CheckpointError(
        f"{path}: holds no weights: no {SAFETENSORS_NAME}, no {INDEX_NAME}, no other weight file."
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor to file name, of an index."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{index}: has no weight_map of tensors to files.")
    if any(Path(name).name != name for name in found.values()):
        raise CheckpointError(f"{index}: names files outside its folder.")
    return found


def is_pickle(path: Path) -> bool:
    """Whether a weight file is one that torch.save writes."""
    return path.suffix in PICKLE_SUFFIXES


def refuse_pickle(path: Path) -> None:
    """ConfigError where a weight file is a pickle."""
    if is_pickle(path):
        raise ConfigError(
            f"{path}: is a pickle, which could run code of its maker. Save it as safetensors; `retbench generate` "
            "reads it too where --allow-pickle says so, as tensors alone."
        )


def open_weights(path: Path, *, allow_pickle: bool) -> Weights:
    """The tensors of a checkpoint in a folder or file.

    Raises:
        CheckpointError: they cannot be read.
        ConfigError: they are a pickle, and none was allowed.
    """
    files = find_weight_files(path)
    if not is_pickle(files[0]):
        is_indexed = len(files) > 1 or not (path.is_file() or files[0].name == SAFETENSORS_NAME)
        index = files[0].with_name(INDEX_NAME)
        promised = frozenset(_weight_map(index)) if is_indexed and index.is_file() else frozenset[str]()
        return SafetensorsWeights(files, promised)
    if not allow_pickle:
        refuse_pickle(files[0])
    return PickledWeights(files[0])
