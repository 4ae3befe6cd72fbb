"""Loading of checkpoints: a model with the stored weights, all of which are checked."""

import re
from collections.abc import Callable, Iterable
from importlib import import_module
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from retbench.architectures.costs import num_params as num_params_of
from retbench.checkpoints.format import Plan, Shape, WeightPart
from retbench.checkpoints.reading import FORMATS, CheckpointInfo, open_checkpoint, read_checkpoint
from retbench.checkpoints.weights import FLOAT_DTYPES, StoredWeights, fingerprint_tensors
from retbench.errors import CheckpointError, UnsupportedError
from retbench.models.build import allocate_model
from retbench.models.decoder import Decoder
from retbench.models.language_model import LanguageModel

MOST_NAMED = 3
"""Most tensors that a message names."""


def load_checkpoint(
    checkpoint: CheckpointInfo | str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    backend: str,
    chunk_size: int | None = None,
    decode_operators: str | None = None,
    allow_pickle: bool = False,
) -> Decoder:
    """Build the model of a checkpoint on its device, in evaluation mode.

    Args:
        checkpoint: Result of `read_checkpoint`, or its argument.
        dtype: Dtype of the model's weights; stored weights are converted.
        device: torch's name or device.
        backend: A name in `Decoder.backends`.
        chunk_size: Tokens per chunk of the chunkwise form; the default when None.
        decode_operators: As of `build_model`.
        allow_pickle: Read weights written by torch.save, as tensors only.

    Raises:
        ConfigError: no such checkpoint or backend; a pickle that was not allowed.
        CheckpointError: weights are missing, unexpected, of another shape or dtype, not finite, or damaged.
        UnsupportedError: the backend cannot run on this device at this dtype; the hub cannot be reached.
    """
    info = checkpoint if isinstance(checkpoint, CheckpointInfo) else read_checkpoint(str(checkpoint))
    weights = open_checkpoint(info, allow_pickle=allow_pickle)
    _check_size(info, weights)
    model = allocate_model(
        info.config,
        dtype=dtype,
        device=device,
        backend=backend,
        chunk_size=chunk_size,
        decode_operators=decode_operators,
    )
    ours: dict[str, Shape] = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    form = FORMATS[info.format]
    plan = form.plan(info, weights.entries.keys(), ours)
    assert plan.keys() == ours.keys()
    _check(plan, weights, info, form.ignored)
    _check_tied(plan, weights, info)
    if form.check is not None:
        form.check(info, weights)
    if info.weights_fingerprint is not None:
        _check_fingerprint(weights, info, info.weights_fingerprint)
    _fill(model, plan, weights)
    return model


def load_model(
    checkpoint: CheckpointInfo,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    backend: str,
    chunk_size: int | None = None,
    decode_operators: str | None = None,
    allow_pickle: bool = False,
    runs_code: bool = False,
) -> LanguageModel:
    """Build the model of a checkpoint of any format: a `Decoder`, or a model that another library runs.

    Args:
        checkpoint: The checkpoint.
        dtype: See `load_checkpoint`, as for the arguments up to `decode_operators` and the errors.
        device: torch's name or device.
        backend: A backend of the model.
        chunk_size: Tokens per chunk of the chunkwise form; the default when None.
        decode_operators: fused or eager; another library has its own, which are eager.
        allow_pickle: Read weights written by torch.save, as tensors only; another library reads them in its own way.
        runs_code: Code that comes with the checkpoint may run.
    """
    library = FORMATS[checkpoint.format].library
    if library is None:
        return load_checkpoint(
            checkpoint,
            dtype=dtype,
            device=device,
            backend=backend,
            chunk_size=chunk_size,
            decode_operators=decode_operators,
            allow_pickle=allow_pickle,
        )
    if decode_operators == "fused":
        raise UnsupportedError(
            f"decode operators 'fused' cannot run '{checkpoint.source}', whose operators are those of another library. "
            "Leave decode_operators out, or set eager."
        )
    loader: Callable[..., LanguageModel] = import_module(library).load
    return loader(
        checkpoint.config, checkpoint.path, dtype=dtype, device=device, backend=backend, runs_code=runs_code
    )


def import_code(checkpoint: CheckpointInfo, *, runs_code: bool = False) -> None:
    """Import what `load_model` imports for a checkpoint, so that its memory is not taken for the model's."""
    if library := FORMATS[checkpoint.format].library:
        import_module(library).import_code(checkpoint.path, runs_code=runs_code)


def _check_size(info: CheckpointInfo, weights: StoredWeights) -> None:
    """Raise CheckpointError before memory is allocated for a model that the files cannot fill.

    Files hold at least half of it: they may have one table as embedding and as head.
    """
    num_stored = sum(prod(entry.shape) for entry in weights.entries.values())
    num_params = num_params_of(info.config)
    if num_params > 2 * num_stored or info.config.num_layers > len(weights.entries):
        raise CheckpointError(
            f"{info.path}: holds {len(weights.entries):,} tensors with {num_stored:,} values, and {_in_words(info)} "
            f"has {num_params:,}. Weights and configuration do not belong together."
        )


def _check(plan: Plan, weights: StoredWeights, info: CheckpointInfo, ignored: str) -> None:
    """Raise CheckpointError unless all needed tensors are present, of the right shape and dtype, and no others are."""
    needed = {part.name: part for parts in plan.values() for part in parts}
    entries, words = weights.entries, _in_words(info)
    absent = [name for name in needed if name not in entries]
    if absent:
        raise CheckpointError(
            f"{info.path}: of the {len(needed)} tensors of {words}, {_named(absent)} missing."
        )
    unexpected = [name for name in entries if name not in needed and not re.fullmatch(ignored, name)]
    if unexpected:
        raise CheckpointError(f"{entries[unexpected[0]].path}: {_named(unexpected)} not part of {words}.")
    for name, part in needed.items():
        path, shape, dtype = entries[name].path, entries[name].shape, entries[name].dtype
        if shape != part.shape:
            raise CheckpointError(
                f"{path}: tensor '{name}' has shape {shape}, expected {part.shape} for {words}. Weights and "
                "configuration do not belong together."
            )
        if dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{path}: tensor '{name}' has dtype {dtype}, expected one of {', '.join(FLOAT_DTYPES)}; quantised "
                "weights cannot be read here."
            )


def _check_tied(plan: Plan, weights: StoredWeights, info: CheckpointInfo) -> None:
    """Raise CheckpointError for a head that is stored and is not the embedding, though the configuration says so."""
    used = {part.name for parts in plan.values() for part in parts}
    table = plan["embedding.weight"][0].name
    for name, entry in weights.entries.items() if info.tied_embeddings else ():
        if name in used or entry.shape != weights.entries[table].shape:
            continue
        head, embedding = weights.read(name), weights.read(table)
        if not torch.equal(head.to(embedding.dtype), embedding):
            raise CheckpointError(
                f"{entry.path}: '{name}' and '{table}' differ, and the configuration says that they are one. Correct "
                "it, or remove the one that the model does not use."
            )


def _in_words(info: CheckpointInfo) -> str:
    """Describe the model of a configuration for a message."""
    config = info.config
    return (
        f"a {config.architecture} ({info.format}) with {config.num_layers} layers, d_model {config.d_model}, "
        f"{config.mixer.num_heads} heads, ffn_dim {config.ffn.ffn_dim if config.ffn else 0} and vocabulary "
        f"{config.vocab_size}"
    )


def _named(names: Iterable[str]) -> str:
    """List some names and the number of others, with the verb that follows."""
    names = sorted(names)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more} {'is' if len(names) == 1 else 'are'}"


def _check_fingerprint(weights: StoredWeights, info: CheckpointInfo, expected: str) -> None:
    """Raise CheckpointError unless the stored tensors equal the saved ones bit by bit."""
    found = fingerprint_tensors((name, weights.read(name)) for name in sorted(weights.entries))
    if found != expected:
        paths = sorted({str(entry.path) for entry in weights.entries.values()})
        raise CheckpointError(
            f"{', '.join(paths)}: its weights have the fingerprint {found}, its configuration says {expected}: the "
            "file was damaged or replaced."
        )


@torch.no_grad()
def _fill(model: Decoder, plan: Plan, weights: StoredWeights) -> None:
    """Copy the weights into the model, one tensor at a time."""
    for name, parameter in model.named_parameters():
        start = 0
        for part in plan[name]:
            stored = weights.read(part.name)
            converted = decoder_rows(stored, part)
            end = start + converted.shape[0]
            rows = parameter[start:end]
            rows.copy_(converted)
            if not rows.isfinite().all():
                path, most = weights.entries[part.name].path, stored.abs().max()
                fault = f"values up to {most:.3g}, which {rows.dtype} cannot hold. Ask for another dtype."
                if count := int((~stored.isfinite()).sum()):
                    fault = f"{count} values that are NaN or infinite."
                raise CheckpointError(f"{path}: tensor '{part.name}' holds {fault}")
            start = end
        assert start == parameter.shape[0]


def decoder_rows(stored: Tensor, part: WeightPart) -> Tensor:
    """Return the rows of a stored tensor, with adjacent rotary pairs, if it has any, half a head apart."""
    if part.convert is not None:
        stored = part.convert(stored)
    if part.interleaved_heads is None:
        return stored
    reordered: Tensor = stored.unflatten(0, (part.interleaved_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return reordered
