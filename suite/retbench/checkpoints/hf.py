"""Checkpoints of transformers that transformers itself loads and runs; see `architectures.hf`.

Only the configuration and the headers of the weights are read here, without transformers.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.hf import ARCHITECTURE, TransformersLayers
from retbench.checkpoints.format import Description, Format, Shape
from retbench.checkpoints.weights import (
    FLOAT_DTYPES,
    StoredTensor,
    find_weight_files,
    open_weights,
    refuse_pickle,
)
from retbench.errors import CheckpointError, shown

_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""Names of the same field in configurations of different models."""

_KINDS = "layers_block_type"
"""The field with the kind of each layer, which configurations of Nemotron-H have in place of a number of layers."""

_NO_TABLE = re.compile(r"(^|\.)\d+\.|wpe|pos")
"""Names of weights that are no input or output embedding, whatever their shape: of a numbered layer, or of positions.

The names of the embeddings themselves are not listed: transformers has twenty, and code of a checkpoint may have any.
"""

_OTHER_TASK = re.compile(r"For(?!CausalLM$|ConditionalGeneration$)[A-Z]\w*$")
"""Names of models of transformers with the head of another task, such as BertForMaskedLM."""

_BUFFER_NAMES = re.compile(r"(^|\.)(inv_freq|masked_bias)$")
_BUFFER_DTYPES = ("I64", "BOOL")
"""Buffers that earlier versions of transformers stored, such as Pythia's frequencies and its numbers of positions."""

WITHOUT_CACHE = frozenset({"mamba", "mamba2", "falcon_mamba"})
"""Models, by `model_type`, whose state has a fixed size; `models.hf` checks it when a model is built."""


def _describe(raw: dict[str, Any], path: Path) -> Description:
    """Describe a checkpoint; the text part of one that has several."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"{path}: the field model_type is {shown(model_type)}, and transformers chooses the model by it. "
            "Give a folder that `save_pretrained` of transformers has written."
        )
    _check_task(raw, path)
    text = raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw
    d_model, vocab_size = _number(text, _WIDTHS, path), _number(text, ("vocab_size",), path)
    is_tied = bool(raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    refuse_pickle(find_weight_files(path.parent)[0], readable=False)
    entries = open_weights(path.parent, allow_pickle=False).entries
    entries = {name: entry for name, entry in entries.items() if not _is_buffer(name, entry)}
    _check_not_quantised(raw, entries, path)
    shapes = {name: entry.shape for name, entry in entries.items()}
    total, tables = _count(shapes, vocab_size, is_tied=is_tied)
    layers = TransformersLayers(
        d_model=d_model,
        model_type=model_type,
        config_fingerprint=hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:12],
        total_params=total,
        nonembedding_params=total - tables,
        has_cache=model_type not in WITHOUT_CACHE,
    )
    config = ModelConfig(
        architecture=ARCHITECTURE.name,
        variant=model_type,
        d_model=d_model,
        vocab_size=vocab_size,
        blocks=(BlockConfig(count=_num_layers(text, path), mixer=layers),),
    )
    known = [name for name in _POSITIONS if isinstance(text.get(name), int)]
    return Description(config=config, context_len=text[known[0]] if known else None, tied_embeddings=is_tied)


def _check_task(raw: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError for a model that was saved for another task than to predict the next token."""
    stated = raw.get("architectures")
    names = [one for one in stated if isinstance(one, str)] if isinstance(stated, list) else []
    is_pair = raw.get("is_encoder_decoder") is True and not any("CausalLM" in name for name in names)
    if names and (is_pair or all(_OTHER_TASK.search(name) for name in names)):
        raise CheckpointError(
            f"{path}: {', '.join(names)} is no causal language model, and only those are measured. Give a checkpoint "
            "of one, such as ...ForCausalLM."
        )


def _check_not_quantised(raw: Mapping[str, Any], entries: Mapping[str, StoredTensor], path: Path) -> None:
    """Raise CheckpointError for quantised weights, as those of a record have one dtype and are counted in the files.

    transformers converts stored integers and 8-bit floats to the dtype that it is asked for without their scales.
    """
    strange = (
        f"'{name}' has dtype {entry.dtype}"
        for name, entry in entries.items()
        if entry.dtype not in FLOAT_DTYPES
    )
    method = "quantization_config is given" if raw.get("quantization_config") else None
    if fault := next(strange, method):
        raise CheckpointError(
            f"{path}: the weights are quantised ({fault}), and only weights in {', '.join(FLOAT_DTYPES)} are measured. "
            "Give the model that was quantised, or save it without quantisation."
        )


def _num_layers(raw: Mapping[str, Any], path: Path) -> int:
    """Return the number of layers, which is stated or that of their kinds; CheckpointError if neither is there."""
    kinds = raw.get(_KINDS)
    if isinstance(kinds, list) and kinds and not any(name in raw for name in _LAYERS):
        return len(kinds)
    return _number(raw, _LAYERS, path)


def _number(raw: Mapping[str, Any], names: Iterable[str], path: Path) -> int:
    """Return the first of some fields that is there; CheckpointError if none is a number."""
    for name in names:
        if isinstance(raw.get(name), int) and raw[name] > 0:
            return int(raw[name])
    raise CheckpointError(
        f"{path}: none of {', '.join(names)} is given as a number above 0. Save the model again with "
        "`save_pretrained` of a current transformers."
    )


def _count(shapes: Mapping[str, Shape], vocab_size: int, *, is_tied: bool) -> tuple[int, int]:
    """Return the values of all weights, and those of the input and output embeddings.

    Some files hold a tied table twice, which counts once.

    Args:
        shapes: Shape of each stored weight, by its name.
        vocab_size: Rows of an embedding.
        is_tied: The input and the output embedding are one weight.
    """
    total = tables = 0
    seen: set[Shape] = set()
    for name, shape in shapes.items():
        is_table = len(shape) == 2 and shape[0] == vocab_size and not _NO_TABLE.search(name)
        if is_table and is_tied and shape in seen:
            continue
        total += prod(shape)
        if is_table:
            seen.add(shape)
            tables += prod(shape)
    return total, tables


def _is_buffer(name: str, entry: StoredTensor) -> bool:
    """Return whether a stored tensor is no weight: a causal mask, (1, 1, T, T), or another buffer."""
    shape = entry.shape
    is_mask = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return is_mask or entry.dtype in _BUFFER_DTYPES or _BUFFER_NAMES.search(name) is not None


def _plan(described: Description, names: Collection[str], ours: Mapping[str, Shape]) -> NoReturn:
    """Raise CheckpointError: transformers maps the weights."""
    raise CheckpointError(
        f"a checkpoint of type '{described.config.variant}' is loaded by transformers and cannot be mapped here."
    )


FORMAT = Format(
    recognises=lambda raw: False,  # its entry asks for it: formats that are read here come first
    describe=_describe,
    plan=_plan,
    ignored="",
    library="retbench.models.hf",
)
