"""The binary of llama2.c, as of the TinyStories models: seven integers, then every weight in float32, unnamed.

Queries and keys are rotated in pairs side by side there and in halves here, so their rows are reordered. The order of
the weights and the norms' epsilon are those of `run.c`; the file says neither.

Source: karpathy/llama2.c, `run.c` (`memory_map_weights`, `rmsnorm`), `export.py` (`legacy_export`).
"""

import math
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retbench.architectures.transformer import transformer_config
from retbench.checkpoints.info import Description
from retbench.checkpoints.mapping import Names, Plan, Shape, map_decoder
from retbench.checkpoints.weights import Entry
from retbench.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = r"freqs_(cos|sin)"
"""Tables of cosines and sines: what they hold follows from the configuration."""
NORM_EPS = 1e-5
VERSIONED_MAGIC = 0x616B3432  # "ak42", which later exports begin with

_HEADER = struct.Struct("<7i")
_NAMES = Names(  # of llama2.c's own training script
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
    """What the file says of itself."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    """Negative where the output head is a tensor of its own."""
    seq_len: int

    @property
    def is_plausible(self) -> bool:
        """Whether a model can have these sizes."""
        return (
            min(self._replace(vocab_size=abs(self.vocab_size))) > 0
            and self.n_layers < 1000
            and self.dim % (2 * self.n_heads) == 0
            and self.n_heads % self.n_kv_heads == 0
        )


def read_header(path: Path) -> Header:
    """The sizes at the start of a file.

    Raises:
        CheckpointError: the file is too short, of a later version, or says what no model can be.
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
    if not header.is_plausible:
        raise CheckpointError(f"{path}: is not a model of llama2.c: its header would mean {header}.")
    return header


def find_model(folder: Path) -> Path | None:
    """The one file in a folder that begins as a model of llama2.c does; None where none or several do."""
    found = []
    for path in sorted(folder.glob("*.bin")):
        try:
            read_header(path)
        except CheckpointError:
            continue
        found.append(path)
    return found[0] if len(found) == 1 else None


def describe_header(header: Header) -> Description:
    """What a header says."""
    config = transformer_config(
        d_model=header.dim,
        num_layers=header.n_layers,
        num_heads=header.n_heads,
        num_kv_heads=header.n_kv_heads,
        vocab_size=abs(header.vocab_size),
        ffn_dim=header.hidden_dim,
        norm_eps=NORM_EPS,
    )
    return Description(config, header.seq_len, tied_embeddings=header.vocab_size > 0)


def recognises(raw: Mapping[str, Any]) -> bool:
    """Never: there is no configuration beside such a file."""
    return False


def describe(raw: dict[str, Any], path: Path) -> Description:
    """What the header of the file at `path` says."""
    return describe_header(read_header(path))


def plan(described: Description, stored: Collection[str], ours: Mapping[str, Shape]) -> Plan:
    """Where the weights are."""
    return map_decoder(described.config, _NAMES, tied_embeddings=described.tied_embeddings, interleaved=True)


class Llama2cWeights:
    """The weights of a file, under the names of llama2.c's own training script.

    Args:
        path: The file.

    Raises:
        CheckpointError: its size is not that of the model in its header.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[str, int] = {}
        self.entries: dict[str, Entry] = {}
        header = read_header(path)
        position = _HEADER.size
        for name, shape in _layout(header):
            self.entries[name] = Entry("float32", shape, path)
            self._offsets[name] = position
            position += 4 * math.prod(shape)
        found = path.stat().st_size
        if found != position:
            raise CheckpointError(
                f"{path}: has {found:,} bytes where its header means {position:,}. Copy or download it again."
            )

    def read(self, name: str) -> "Tensor":
        """A tensor as it is stored."""
        import numpy as np
        import torch

        shape = self.entries[name].shape
        values = np.fromfile(self._path, "<f4", count=math.prod(shape), offset=self._offsets[name])
        return torch.from_numpy(values).view(shape)


def _layout(header: Header) -> list[tuple[str, Shape]]:
    """Every tensor in the order of the file: kind after kind, each for all layers."""
    dim, hidden, vocab = header.dim, header.hidden_dim, abs(header.vocab_size)
    head_dim = dim // header.n_heads
    kv = header.n_kv_heads * head_dim
    table = (vocab, dim)
    kinds: list[tuple[str, Shape]] = [
        (_NAMES.mixer_norm, (dim,)),
        (_NAMES.projections[0], (dim, dim)),
        (_NAMES.projections[1], (kv, dim)),
        (_NAMES.projections[2], (kv, dim)),
        (_NAMES.out, (dim, dim)),
        (_NAMES.ffn_norm, (dim,)),
        (_NAMES.gate_up[0], (hidden, dim)),
        (_NAMES.down, (dim, hidden)),
        (_NAMES.gate_up[1], (hidden, dim)),
    ]
    layers = range(header.n_layers)
    rotary = (header.seq_len, head_dim // 2)
    return [
        (_NAMES.embedding, table),
        *((f"{_NAMES.layer.format(layer)}.{name}", shape) for name, shape in kinds for layer in layers),
        (_NAMES.norm, (dim,)),
        ("freqs_cos", rotary),
        ("freqs_sin", rotary),
        *([(_NAMES.head, table)] if header.vocab_size < 0 else []),
    ]
