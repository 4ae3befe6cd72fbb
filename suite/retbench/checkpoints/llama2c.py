"""The binary format of llama2.c, e.g. of the TinyStories models: seven integers, then unnamed float32 weights.

llama2.c rotates adjacent pairs of queries and keys, models here rotate halves, so their rows are reordered. The order
of the weights and the epsilon of the norms are those of `run.c`, since the file states neither.

Source: karpathy/llama2.c, `run.c` (`memory_map_weights`, `rmsnorm`), `export.py` (`legacy_export`).
"""

import math
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retbench.architectures.transformer import transformer_config
from retbench.checkpoints.format import Description, Format, Names, Shape, map_decoder
from retbench.checkpoints.weights import StoredTensor, StoredWeights
from retbench.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

NORM_EPS = 1e-5
VERSIONED_MAGIC = 0x616B3432  # "ak42", which later exports begin with

_HEADER = struct.Struct("<7i")
_NAMES = Names(  # those of llama2.c's own training script
    embedding="tok_embeddings.weight",
    norm="norm.weight",
    head="output.weight",
    layer="layers.{}",
    mixer_norm="attention_norm.weight",
    projections=("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
    out="attention.wo.weight",
    ffn_norm="ffn_norm.weight",
    gate_up=("feed_forward.w1.weight", "feed_forward.w3.weight"),
    down="feed_forward.w2.weight",
)


class Header(NamedTuple):
    """The sizes at the start of a file."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    """Negative if the output head is a separate tensor."""
    seq_len: int


def read_header(path: Path) -> Header:
    """Read the sizes at the start of a file.

    Raises:
        CheckpointError: the file is too short, of a later version, or its sizes are not those of a model.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER.size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    if len(start) < _HEADER.size:
        raise CheckpointError(
            f"{path}: has {len(start)} bytes, fewer than the {_HEADER.size} of a llama2.c header."
        )
    header = Header(*_HEADER.unpack(start))
    if header.dim == VERSIONED_MAGIC:
        raise CheckpointError(
            f"{path}: is a llama2.c export of version {header.hidden_dim}; only the one without a version is read "
            "here. Export it again with `python export.py --version 0`."
        )
    if not (
        min(header._replace(vocab_size=abs(header.vocab_size))) > 0
        and header.n_layers < 1000
        and header.dim % (2 * header.n_heads) == 0
        and header.n_heads % header.n_kv_heads == 0
    ):
        raise CheckpointError(f"{path}: is not a model of llama2.c: its header would mean {header}.")
    return header


def find_model(path: Path) -> Path | None:
    """Return `path` itself if it is a .bin file, else the only file in the folder with a valid header."""
    if path.is_file() and path.suffix == ".bin":
        return path
    found = []
    for file in path.glob("*.bin"):
        with suppress(CheckpointError):
            read_header(file)
            found.append(file)
    return found[0] if len(found) == 1 else None


def describe(raw: dict[str, Any], path: Path) -> Description:
    """Read the header of the file at `path`."""
    header = read_header(path)
    config = transformer_config(
        d_model=header.dim,
        num_layers=header.n_layers,
        num_heads=header.n_heads,
        num_kv_heads=header.n_kv_heads,
        vocab_size=abs(header.vocab_size),
        ffn_dim=header.hidden_dim,
        norm_eps=NORM_EPS,
    )
    return Description(config=config, context_len=header.seq_len, tied_embeddings=header.vocab_size > 0)


def open_model(path: Path) -> StoredWeights:
    """Open the weights of a file under the names of llama2.c's own training script.

    Raises:
        CheckpointError: the file's size contradicts its header.
    """
    offsets: dict[str, int] = {}
    entries: dict[str, StoredTensor] = {}
    position = _HEADER.size
    for name, shape in _layout(path):
        entries[name] = StoredTensor("float32", shape, path)
        offsets[name] = position
        position += 4 * math.prod(shape)
    found = path.stat().st_size
    if found != position:
        raise CheckpointError(
            f"{path}: has {found:,} bytes where its header means {position:,}. Copy or download it again."
        )

    def read(name: str) -> "Tensor":
        import numpy as np
        import torch

        shape = entries[name].shape
        values = np.fromfile(path, "<f4", count=math.prod(shape), offset=offsets[name])
        return torch.from_numpy(values).view(shape)

    return StoredWeights(entries, read)


def _layout(path: Path) -> list[tuple[str, Shape]]:
    """List the tensors in the order of the file, in which each kind has the tensors of all layers together."""
    header, described = read_header(path), describe({}, path)
    plan = map_decoder(described, _NAMES)
    shapes = {part.name: part.shape for parts in plan.values() for part in parts}
    activated, linear = _NAMES.gate_up
    mixer = (_NAMES.mixer_norm, *_NAMES.projections, _NAMES.out)
    kinds = (*mixer, _NAMES.ffn_norm, activated, _NAMES.down, linear)
    blocks = [_NAMES.layer.format(layer) for layer in range(header.n_layers)]
    table = (header.seq_len, header.dim // header.n_heads // 2)
    return [
        (_NAMES.embedding, shapes[_NAMES.embedding]),
        *((name, shapes[name]) for name in (f"{block}.{kind}" for kind in kinds for block in blocks)),
        (_NAMES.norm, shapes[_NAMES.norm]),
        *(("freqs_cos", table), ("freqs_sin", table)),
        *([] if described.tied_embeddings else [(_NAMES.head, shapes[_NAMES.head])]),
    ]


FORMAT = Format(
    recognises=lambda raw: False,  # the format has no configuration file
    describe=describe,
    plan=lambda described, stored, ours: map_decoder(described, _NAMES, interleaved=True),
    ignored=r"freqs_(cos|sin)",  # tables that follow from the configuration
)
