"""Tensors in weight files: listed from the headers, and each read on demand; and fingerprints of their content."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retbench.checkpoints.format import Shape, read_json
from retbench.errors import CheckpointError, ConfigError
from retbench.files import inside

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS_NAME = "model.safetensors"
INDEX_NAME = f"{SAFETENSORS_NAME}.index.json"
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin"})

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""torch's names of the dtypes that weights may have, by those of safetensors."""
FLOAT_DTYPES = tuple(_DTYPES.values())


class StoredTensor(NamedTuple):
    """Header of a tensor in a file."""

    dtype: str
    """torch's name; the file's own name for any other dtype."""
    shape: Shape
    path: Path


@dataclass(frozen=True)
class StoredWeights:
    """Tensors in files by name.

    Attributes:
        entries: Header of every tensor.
        read: Returns one tensor on the CPU, as stored.
    """

    entries: Mapping[str, StoredTensor]
    read: "Callable[[str], Tensor]"


def open_weights(path: Path, *, allow_pickle: bool) -> StoredWeights:
    """Open the tensors of a checkpoint in a folder or file.

    Raises:
        CheckpointError: they cannot be read.
        ConfigError: they are a pickle, which was not allowed.
    """
    files = find_weight_files(path)
    if not allow_pickle:
        refuse_pickle(files[0])
    if files[0].suffix in PICKLE_SUFFIXES:
        return _open_pickle(files[0])
    entries = {name: entry for file in files for name, entry in _read_header(file).items()}
    index = files[0].with_name(INDEX_NAME)
    is_indexed = len(files) > 1 or not (path.is_file() or files[0].name == SAFETENSORS_NAME)
    if is_indexed and index.is_file():
        absent = sorted(_weight_map(index).keys() - entries.keys())
        if absent:
            raise CheckpointError(
                f"{index}: lists the tensor '{absent[0]}'"
                f"{f' and {len(absent) - 1} more' if len(absent) > 1 else ''}, which none of its files has."
            )

    def read(name: str) -> "Tensor":
        from safetensors import safe_open

        with safe_open(entries[name].path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    return StoredWeights(entries, read)


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of one safetensors file without reading any."""
    from safetensors import SafetensorError, safe_open

    entries = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                view = file.get_slice(name)
                dtype = str(view.get_dtype())
                entries[name] = StoredTensor(_DTYPES.get(dtype, dtype), tuple(view.get_shape()), path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: is not a complete safetensors file ({error}). Copy or download it again."
        ) from error
    return entries


def save_tensors(tensors: "Mapping[str, Tensor]", path: Path) -> None:
    """Write tensors to a safetensors file; an OSError if that fails, as for any other file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(mode)  # safetensors makes a file that only its owner can read
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _open_pickle(path: Path) -> StoredWeights:
    """Read a state dict written by torch.save with `weights_only`, which permits tensors and plain containers only.

    The file may hold the state dict itself, or the state dict under the key `model` or `state_dict`.
    """
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may end anywhere in the unpickler
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: does not hold a state dict of tensors ({reason}).") from error
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(
        isinstance(value, torch.Tensor) and value.layout is torch.strided for value in found.values()
    ):
        raise CheckpointError(f"{path}: does not hold a state dict of tensors.")
    tensors = {str(name): tensor for name, tensor in found.items()}
    entries = {
        name: StoredTensor(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), path)
        for name, tensor in tensors.items()
    }
    return StoredWeights(entries, tensors.__getitem__)


def find_weight_files(path: Path) -> tuple[Path, ...]:
    """Find the weight files of a checkpoint: `path` itself if it is a file, else files of the folder.

    safetensors take precedence: one file, or those of an index; then a pickle. CheckpointError if there are none, or
    several candidates.
    """
    if path.is_file():
        return (path,)
    if (path / SAFETENSORS_NAME).is_file():
        return (path / SAFETENSORS_NAME,)
    if (path / INDEX_NAME).is_file():
        names = sorted(set(_weight_map(path / INDEX_NAME).values()))
        absent = [name for name in names if not (path / name).is_file()]
        if absent:
            raise CheckpointError(
                f"{path / INDEX_NAME}: names {', '.join(absent)}, which is not in that folder."
            )
        return tuple(path / name for name in names)
    for suffixes in ({".safetensors"}, PICKLE_SUFFIXES):
        found = sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file())
        if len(found) > 1:
            raise CheckpointError(
                f"{path}: holds several weight files ({', '.join(file.name for file in found)}). Give the path of "
                f"one, or add their {INDEX_NAME} if they are parts of one model."
            )
        if found:
            return tuple(found)
    raise CheckpointError(
        f"{path}: holds no weights: no {SAFETENSORS_NAME}, no {INDEX_NAME}, no other weight file."
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Read the file name of each tensor from an index."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{index}: has no weight_map of tensors to files.")
    try:
        for name in found.values():
            inside(index.parent, name)
    except ConfigError as error:
        raise CheckpointError(f"{index}: names a file outside its folder: {error}") from error
    return found


def refuse_pickle(path: Path, *, readable: bool = True) -> None:
    """Raise ConfigError if a weight file is a pickle, which a command has an option to read if it is `readable`."""
    if path.suffix in PICKLE_SUFFIXES:
        other = ", or use `retbench generate --allow-pickle`, which reads tensors only" if readable else ""
        raise ConfigError(
            f"{path}: is a pickle, which could run arbitrary code. Save it as safetensors{other}."
        )


def fingerprint_tensors(tensors: "Iterable[tuple[str, Tensor]]") -> str:
    """Return 12 hexadecimal digits of SHA-256 over each tensor's name, dtype, shape and bytes.

    Args:
        tensors: Names and tensors, sorted by name; each is used once, so an iterator may read them lazily.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """Return 12 hexadecimal digits over the bytes of files, in order, for formats that store no fingerprint."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
