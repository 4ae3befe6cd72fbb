"""State dicts of torchscale's RetNetDecoder, the official RetNet, since October 2023: RMSNorm and a gated feed-forward.

torchscale writes no configuration, so the user adds a `config.json` with the fields of its RetNetConfig. Sizes and the
activation are required; other fields default to torchscale's values.

Source: microsoft/torchscale, `torchscale/architecture/{config,retnet}.py`, `torchscale/component/`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import isclose, log1p
from pathlib import Path
from typing import Any, Literal

from retbench.architectures.retnet import retnet_config
from retbench.checkpoints.format import Description, Fields, Format, Names, Plan, Shape, map_decoder
from retbench.checkpoints.weights import StoredWeights
from retbench.errors import CheckpointError

DECAY = "retnet_rel_pos.decay"
FAIRSEQ_PREFIX = "decoder."
"""Prefix of all names in a state dict of fairseq's whole model."""

_NAMES = Names(
    embedding="embed_tokens.weight",
    norm="layer_norm.weight",
    head="output_projection.weight",
    layer="layers.{}",
    mixer_norm="retention_layer_norm.weight",
    projections=tuple(f"retention.{letter}_proj.weight" for letter in "qkvg"),
    out="retention.out_proj.weight",
    ffn_norm="final_layer_norm.weight",
    gate_up=("ffn.fc1.weight", "ffn.gate.weight"),
    down="ffn.fc2.weight",
)


class _RetNetFields(Fields):
    decoder_embed_dim: int
    decoder_value_embed_dim: int
    decoder_retention_heads: int
    decoder_ffn_embed_dim: int
    decoder_layers: int
    vocab_size: int
    activation_fn: Literal["swish", "silu"]
    """Required: torchscale's published architectures use swish, while its RetNetConfig defaults to gelu."""
    layernorm_eps: float = 1e-6
    share_decoder_input_output_embed: bool = False
    no_scale_embedding: Literal[True] = True
    layernorm_embedding: Literal[False] = False
    deepnorm: Literal[False] = False
    subln: Literal[False] = False
    multiway: Literal[False] = False
    moe_freq: Literal[0] = 0
    no_output_layer: Literal[False] = False


def describe(raw: dict[str, Any], path: Path) -> Description:
    """Read a configuration; CheckpointError if it is invalid, or of a model that this package does not have."""
    fields = _RetNetFields.model_validate(raw)
    config = retnet_config(
        variant="torchscale",
        d_model=fields.decoder_embed_dim,
        num_layers=fields.decoder_layers,
        num_heads=fields.decoder_retention_heads,
        vocab_size=fields.vocab_size,
        ffn_dim=fields.decoder_ffn_embed_dim,
        value_dim=fields.decoder_value_embed_dim,
        decay="eq8",
        norm_eps=fields.layernorm_eps,
    )
    return Description(config=config, tied_embeddings=fields.share_decoder_input_output_embed)


def check(described: Description, weights: StoredWeights) -> None:
    """Raise CheckpointError if the stored decays contradict the configuration.

    The number of heads changes no weight's shape and was written by hand, so only the decays can confirm it.
    """
    for name in (DECAY, FAIRSEQ_PREFIX + DECAY):
        if name not in weights.entries:
            continue
        stored = weights.read(name).flatten().tolist()
        heads = described.config.mixer.num_heads
        expected = [log1p(-(2.0 ** (-5 - head))) for head in range(heads)]
        close = 1e-5 if weights.entries[name].dtype in ("float32", "float64") else 1e-2
        if len(stored) != heads or any(
            not isclose(one, other, rel_tol=close, abs_tol=1e-7)
            for one, other in zip(stored, expected, strict=True)
        ):
            raise CheckpointError(
                f"{weights.entries[name].path}: '{name}' holds the logarithms of {len(stored)} decays, "
                f"{', '.join(f'{value:.4g}' for value in stored[:3])}, ...; for decoder_retention_heads {heads} they "
                f"would be {', '.join(f'{value:.4g}' for value in expected[:3])}, .... Correct config.json."
            )


def plan(described: Description, stored: Collection[str], ours: Mapping[str, Shape]) -> Plan:
    """Map the weights, with fairseq's prefix if the file has it."""
    names = _NAMES
    if FAIRSEQ_PREFIX + names.embedding in stored:
        prefixed = {
            name: FAIRSEQ_PREFIX + getattr(names, name) for name in ("embedding", "norm", "head", "layer")
        }
        names = replace(names, **prefixed)
    return map_decoder(described, names)


FORMAT = Format(
    recognises=lambda raw: "decoder_retention_heads" in raw,
    describe=describe,
    plan=plan,
    # Buffers, which `check` reads, and the unused head of a model with tied embeddings.
    ignored=r"(decoder\.)?(retnet_rel_pos\.(angle|decay)|version|output_projection\.weight)",
    check=check,
)
