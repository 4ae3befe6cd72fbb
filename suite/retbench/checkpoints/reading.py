"""What a checkpoint is, from its configuration and the headers of its weights. Without torch."""

from collections import Counter
from math import prod
from pathlib import Path

from retbench.checkpoints import formats, llama2c
from retbench.checkpoints.config_file import CONFIG_NAME, read_json
from retbench.checkpoints.info import CheckpointInfo
from retbench.checkpoints.places import locate
from retbench.checkpoints.weights import Weights, find_weight_files, is_pickle, open_weights, refuse_pickle
from retbench.errors import CheckpointError

LLAMA2C = "llama2c"
FINAL = "final"
"""The checkpoint in the folder of a training run."""
TOKENIZER_PATTERNS = ("tokenizer.json", "tokenizer.model", "tok*.bin")
"""Of transformers and fla, and llama2.c's own."""


def read_checkpoint(
    name: str, *, revision: str | None = None, format: str = "auto", data_dir: Path | None = None
) -> CheckpointInfo:
    """Find a checkpoint and read what it is; its weights stay on disk.

    Args:
        name: A folder or file, or the folder of a run of `retbench train`; a path below the data folder; or
            OWNER/REPOSITORY[@REVISION] on the hub.
        revision: Of a repository on the hub: a commit, branch or tag.
        format: retbench, fla, llama, llama2c or torchscale; auto to find out.
        data_dir: The data folder; that of RETBENCH_DATA when None.

    Raises:
        ConfigError: there is no such checkpoint or format.
        CheckpointError: it is damaged, or of a model that this package does not have.
        UnsupportedError: it is on the hub, which cannot be reached.
    """
    formats.check_name(format)
    path, commit = locate(name, revision=revision, data_dir=data_dir)
    if not _config_path(path).is_file() and _config_path(path / FINAL).is_file():
        path = path / FINAL
    if format == LLAMA2C or (format == "auto" and not _config_path(path).is_file()):
        path = _find_llama2c(path)
        format, described = LLAMA2C, formats.describe(LLAMA2C, {}, path)
    else:
        config_path = _config_path(path)
        raw = read_json(config_path)
        format = formats.recognise(raw, config_path) if format == "auto" else format
        described = formats.describe(format, raw, config_path)
    return CheckpointInfo(
        format=format,
        config=described.config,
        context_len=described.context_len,
        tied_embeddings=described.tied_embeddings,
        tokenizer=described.tokenizer or _find_tokenizer(path),
        tokenizer_fingerprint=described.tokenizer_fingerprint,
        weights_fingerprint=described.weights_fingerprint,
        weights_dtype=_stored_dtype(format, path),
        path=path,
        source=name,
        revision=commit,
        metadata=dict(described.metadata),
    )


def open_checkpoint(info: CheckpointInfo, *, allow_pickle: bool = False) -> Weights:
    """The tensors of a checkpoint.

    Raises:
        CheckpointError: they cannot be read.
        ConfigError: they are a pickle, and none was allowed.
    """
    if info.format == LLAMA2C:
        return llama2c.Llama2cWeights(info.path)
    return open_weights(info.path, allow_pickle=allow_pickle)


def check_no_pickle(info: CheckpointInfo) -> None:
    """ConfigError where the weights of a checkpoint are a pickle, which only some commands can be told to read."""
    if info.format != LLAMA2C:
        refuse_pickle(find_weight_files(info.path)[0])


def _config_path(path: Path) -> Path:
    """Where the configuration of a checkpoint is: in its folder."""
    return (path if path.is_dir() else path.parent) / CONFIG_NAME


def _find_llama2c(path: Path) -> Path:
    """The file of a llama2.c model at `path`, or in the folder there, which has no configuration."""
    if path.is_file() and path.suffix == ".bin":
        return path
    found = llama2c.find_model(path) if path.is_dir() else None
    if found is None:
        raise CheckpointError(
            f"{_config_path(path)}: there is no such file, so it is not known what the weights are. A folder of ours, "
            "of fla or of transformers has one; beside a state dict of torchscale write one with the fields of its "
            "RetNetConfig (decoder_embed_dim, decoder_retention_heads, ..., activation_fn)."
        )
    return found


def _find_tokenizer(path: Path) -> str | None:
    """The tokenizer beside the weights, if there is one."""
    folder = path if path.is_dir() else path.parent
    for pattern in TOKENIZER_PATTERNS:
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return str(found[0])
    return None


def _stored_dtype(format: str, path: Path) -> str | None:
    """Dtype of most values of the weights; None where they are in a pickle, which is not opened for it."""
    if format == LLAMA2C:
        return "float32"
    if is_pickle(find_weight_files(path)[0]):
        return None
    values: Counter[str] = Counter()
    for entry in open_weights(path, allow_pickle=False).entries.values():
        values[entry.dtype] += prod(entry.shape)
    return values.most_common(1)[0][0] if values else None
