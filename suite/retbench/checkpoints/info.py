"""What a checkpoint is, as its files say: enough to build the model and to read its weights. Without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from retbench.architectures.configs import ModelConfig
from retbench.strict import Strict


class Description(NamedTuple):
    """What a format's configuration says."""

    config: ModelConfig
    context_len: int | None = None
    """Tokens of the longest sequence that the model was trained on, where it says so."""
    tied_embeddings: bool = False
    """Whether the output head is the embedding table. Ours are always two tensors: they get equal values."""
    tokenizer: str | None = None
    tokenizer_fingerprint: str | None = None
    weights_fingerprint: str | None = None
    metadata: Mapping[str, Any] = {}


class CheckpointInfo(Strict):
    """A checkpoint that was found and whose configuration was read; its weights are still on disk."""

    format: str
    """retbench, fla, llama, llama2c or torchscale."""
    config: ModelConfig
    context_len: int | None = None
    """Tokens of the longest sequence that the model was trained on; None where the checkpoint does not say."""
    tied_embeddings: bool = False
    """Whether its output head is its embedding table; the model that is loaded has a copy for each."""
    tokenizer: str | None = None
    """Name or path of its tokenizer; None where the checkpoint has none."""
    tokenizer_fingerprint: str | None = None
    weights_fingerprint: str | None = None
    """Of the stored tensors, as `fingerprints.fingerprint_tensors` makes it; only our own format has one."""
    weights_dtype: str | None = None
    """Dtype of most of the stored tensors by torch's name; None where only a pickle holds them."""
    path: Path
    """The folder, or the file where the checkpoint is one."""
    source: str
    """As it was asked for."""
    revision: str | None = None
    """Commit on the hub; None for a local one."""
    metadata: dict[str, Any] = Field(default_factory=dict)
