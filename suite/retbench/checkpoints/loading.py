"""From a checkpoint to a model that computes what the one it was trained as does."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from retbench.architectures.configs import ModelConfig
from retbench.checkpoints.fingerprints import fingerprint_tensors
from retbench.checkpoints.formats import FORMATS
from retbench.checkpoints.info import CheckpointInfo, Description
from retbench.checkpoints.mapping import Part, Plan, Shape
from retbench.checkpoints.reading import open_checkpoint, read_checkpoint
from retbench.checkpoints.weights import Weights
from retbench.errors import CheckpointError
from retbench.models.build import allocate_model
from retbench.models.decoder import Decoder

FLOAT_DTYPES = ("float64", "float32", "bfloat16", "float16")
MOST_NAMED = 3
"""Tensors that a message names at most."""


def load_checkpoint(
    checkpoint: CheckpointInfo | str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    backend: str,
    chunk_size: int | None = None,
    allow_pickle: bool = False,
) -> Decoder:
    """The model of a checkpoint on its device, in evaluation mode.

    Args:
        checkpoint: What `read_checkpoint` gave, or what it takes.
        dtype: Dtype of the model's weights, whatever that of the stored ones.
        device: torch's name or device.
        backend: Retention form or attention backend; see `Decoder.backends`.
        chunk_size: Chunk of the chunkwise form; the default when None.
        allow_pickle: Read weights that torch.save wrote, as tensors alone.

    Raises:
        ConfigError: no such checkpoint or backend; a pickle that was not allowed.
        CheckpointError: weights are missing, too many, of another shape or dtype, not finite, or damaged.
        UnsupportedError: the backend cannot run on this device at this dtype; the hub cannot be reached.
    """
    info = checkpoint if isinstance(checkpoint, CheckpointInfo) else read_checkpoint(str(checkpoint))
    weights = open_checkpoint(info, allow_pickle=allow_pickle)
    model = allocate_model(info.config, dtype=dtype, device=device, backend=backend, chunk_size=chunk_size)
    ours: dict[str, Shape] = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    form = FORMATS[info.format]
    plan = form.plan(_described(info), weights.entries.keys(), ours)
    assert plan.keys() == ours.keys()
    _check(plan, weights, info, form.ignored)
    if form.check is not None:
        form.check(_described(info), weights)
    if info.weights_fingerprint is not None:
        _check_fingerprint(weights, info, info.weights_fingerprint)
    _fill(model, plan, weights)
    return model


def map_weights(format: str, config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from weights in memory, under the names that their library gives them.

    Args:
        format: fla, llama, llama2c or torchscale; not tied.
        config: The model.
        weights: By name; gradients of them are mapped as well. What is no weight is left out.
    """
    plan = FORMATS[format].plan(Description(config), weights.keys(), {})
    return {
        name: torch.cat([_rows(weights[part.name], part) for part in parts]) for name, parts in plan.items()
    }


def _described(info: CheckpointInfo) -> Description:
    """What the configuration of a checkpoint said about its weights."""
    return Description(info.config, tied_embeddings=info.tied_embeddings)


def _check(plan: Plan, weights: Weights, info: CheckpointInfo, ignored: str) -> None:
    """CheckpointError unless every tensor that is needed is there as it must be, and no other."""
    needed = {part.name: part for parts in plan.values() for part in parts}
    entries = weights.entries
    absent = [name for name in needed if name not in entries]
    if absent:
        raise CheckpointError(
            f"{info.path}: of the {len(needed)} tensors of {_in_words(info)}, {_named(absent)} missing."
        )
    spare = re.compile(ignored)
    unexpected = [name for name in entries if name not in needed and not spare.fullmatch(name)]
    if unexpected:
        raise CheckpointError(
            f"{entries[unexpected[0]].path}: {_named(unexpected)} not part of {_in_words(info)}."
        )
    for part in needed.values():
        _check_entry(part, weights, info)


def _check_entry(part: Part, weights: Weights, info: CheckpointInfo) -> None:
    """CheckpointError unless one tensor has the shape and a dtype that it must have."""
    entry = weights.entries[part.name]
    if entry.shape != part.shape:
        raise CheckpointError(
            f"{entry.path}: tensor '{part.name}' has shape {entry.shape}, expected {part.shape} for "
            f"{_in_words(info)}. Weights and configuration do not belong together."
        )
    if entry.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{entry.path}: tensor '{part.name}' has dtype {entry.dtype}, expected one of {', '.join(FLOAT_DTYPES)}; "
            "quantised weights cannot be read here."
        )


def _in_words(info: CheckpointInfo) -> str:
    """The model that a configuration describes, as messages name it."""
    config = info.config
    return (
        f"a {config.architecture} ({info.format}) with {config.num_layers} layers, d_model {config.d_model}, "
        f"{config.mixer.num_heads} heads, ffn_dim {config.ffn.ffn_dim if config.ffn else 0} and vocabulary "
        f"{config.vocab_size}"
    )


def _named(names: Iterable[str]) -> str:
    """Some of the names and how many more, with the verb that follows."""
    names = sorted(names)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more} {'is' if len(names) == 1 else 'are'}"


def _check_fingerprint(weights: Weights, info: CheckpointInfo, expected: str) -> None:
    """CheckpointError unless the stored tensors are bit by bit those that were saved."""
    found = fingerprint_tensors((name, weights.read(name)) for name in sorted(weights.entries))
    if found != expected:
        paths = sorted({str(entry.path) for entry in weights.entries.values()})
        raise CheckpointError(
            f"{', '.join(paths)}: its weights have the fingerprint {found}, its configuration says {expected}: it was "
            "damaged, or replaced by another."
        )


@torch.no_grad()
def _fill(model: Decoder, plan: Plan, weights: Weights) -> None:
    """Copy every weight to where it belongs, one tensor at a time."""
    for name, parameter in model.named_parameters():
        start = 0
        for part in plan[name]:
            stored = weights.read(part.name)
            end = start + stored.shape[0]
            rows = parameter[start:end]
            rows.copy_(_rows(stored, part))
            if not rows.isfinite().all():
                raise _not_finite(part.name, stored, parameter.dtype, weights)
            start = end
        assert start == parameter.shape[0]


def _rows(stored: Tensor, part: Part) -> Tensor:
    """A tensor as it is stored, in our order: rotary pairs are rows half a head apart, not side by side."""
    if part.interleaved_heads is None:
        return stored
    reordered: Tensor = stored.unflatten(0, (part.interleaved_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return reordered


def _not_finite(name: str, stored: Tensor, dtype: torch.dtype, weights: Weights) -> CheckpointError:
    """The error for a tensor with values that are not numbers, as stored or once converted."""
    path = weights.entries[name].path
    count = int((~stored.isfinite()).sum())
    if count:
        return CheckpointError(f"{path}: tensor '{name}' holds {count} values that are NaN or infinite.")
    return CheckpointError(
        f"{path}: tensor '{name}' holds values up to {stored.abs().max():.3g}, which {dtype} cannot hold. Ask for "
        "another dtype."
    )
