"""Checkpoints of RWKV-6: BlinkDL's state dicts, and the repositories `RWKV/rwkv-6-world-*` with the same tensors.

The repositories have a `config.json`. BlinkDL's files have none, so the user adds one with `model_type` "rwkv6",
`hidden_size`, `num_hidden_layers`, `vocab_size` and `head_size`.

Source: BlinkDL/RWKV-LM, `RWKV-v5/src/model.py` and `RWKV-v5/rwkv_v6_demo.py`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from retbench.architectures.configs import ModelConfig
from retbench.architectures.rwkv6 import published_ffn, rwkv_config
from retbench.checkpoints.format import Description, Fields, Format, Plan, Shape, WeightPart, prefixed
from retbench.errors import CheckpointError
from retbench.mixers.rwkv.config import RwkvTimeMix

if TYPE_CHECKING:
    from torch import Tensor


class _Names(NamedTuple):
    """Names that differ between the two; the tensors within a part of a block are called alike."""

    embedding: str
    embedding_norm: str
    block: str
    time_mix: str
    channel_mix: str
    norm: str


_BLINKDL = _Names("emb.weight", "blocks.0.ln0", "blocks.{}", "att", "ffn", "ln_out")
_HUB = _Names(
    embedding="rwkv.embeddings.weight",
    embedding_norm="rwkv.blocks.0.pre_ln",
    block="rwkv.blocks.{}",
    time_mix="attention",
    channel_mix="feed_forward",
    norm="rwkv.ln_out",
)


class _Rwkv6Fields(Fields):
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int
    vocab_size: int
    head_size: int = Field(ge=1)
    """It gives the number of heads: `num_attention_heads` of the published repositories is another number."""
    head_size_divisor: int = 8
    attention_hidden_size: int | None = None
    intermediate_size: int | None = None
    layer_norm_epsilon: float = 1e-5
    context_length: int | None = None
    tie_word_embeddings: Literal[False] = False

    def resolve(self, path: Path) -> ModelConfig:
        """Return the model; CheckpointError for widths that models here do not have."""
        d = self.hidden_size
        if d % self.head_size or self.attention_hidden_size not in (None, d):
            raise CheckpointError(
                f"{path}: head_size {self.head_size} and attention_hidden_size {self.attention_hidden_size}; the heads "
                f"of an RWKV-6 here are together as wide as the model ({d})."
            )
        # The published code has twice the ranks at a width of 4096.
        rank = 64 if d == 4096 else 32
        mixer = RwkvTimeMix(
            d_model=d,
            num_heads=d // self.head_size,
            mix_rank=rank,
            decay_rank=2 * rank,
            norm_eps=1e-5 * self.head_size_divisor**2,
        )
        return rwkv_config(
            mixer,
            num_layers=self.num_hidden_layers,
            vocab_size=self.vocab_size,
            ffn_dim=self.intermediate_size or published_ffn(d),
            norm_eps=self.layer_norm_epsilon,
        )


def describe(raw: dict[str, Any], path: Path) -> Description:
    """Read a configuration; CheckpointError if it is invalid, or of a model that this package does not have."""
    fields = _Rwkv6Fields.model_validate(raw)
    return Description(config=fields.resolve(path), context_len=fields.context_length)


def plan(described: Description, stored: Collection[str], ours: Mapping[str, Shape]) -> Plan:
    """Map the weights, with the names that the files have."""
    config = described.config
    names = _BLINKDL if _BLINKDL.embedding in stored else _HUB
    table = (config.vocab_size, config.d_model)
    found: Plan = {
        "embedding.weight": (WeightPart(names.embedding, table),),
        "head.weight": (WeightPart("head.weight", table),),
        **map_norm("embedding_norm", names.embedding_norm, config.d_model),
        **map_norm("norm", names.norm, config.d_model),
    }
    for layer, block in enumerate(config.layers):
        assert isinstance(block.mixer, RwkvTimeMix)
        assert block.ffn is not None
        parts = {
            **map_norm("mixer_norm", "ln1", config.d_model),
            **map_norm("ffn_norm", "ln2", config.d_model),
            **prefixed(_map_time_mix(block.mixer), "mixer", names.time_mix),
            **prefixed(_map_channel_mix(config.d_model, block.ffn.ffn_dim), "ffn", names.channel_mix),
        }
        found |= prefixed(parts, f"blocks.{layer}", names.block.format(layer))
    return found


def map_norm(own: str, theirs: str, width: int) -> Plan:
    """Return the parts of a LayerNorm's or GroupNorm's weight and bias."""
    return {f"{own}.{part}": (WeightPart(f"{theirs}.{part}", (width,)),) for part in ("weight", "bias")}


def _map_time_mix(mixer: RwkvTimeMix) -> Plan:
    """Return the parts of a time mix."""
    d, rank, decay_rank = mixer.d_model, mixer.mix_rank, mixer.decay_rank
    return {
        "mix": tuple(_vector(f"time_maa_{letter}", (1, 1, d)) for letter in "wkvrg"),
        "mix_input": (_vector("time_maa_x", (1, 1, d)),),
        "log_rate": (_vector("time_decay", (1, 1, d)),),
        "bonus": (_vector("time_faaaa", (mixer.num_heads, mixer.head_dim)),),
        "mix_down": (WeightPart("time_maa_w1", (d, 5 * rank)),),
        "mix_up": (WeightPart("time_maa_w2", (5, rank, d)),),
        "decay_down": (WeightPart("time_decay_w1", (d, decay_rank)),),
        "decay_up": (WeightPart("time_decay_w2", (decay_rank, d)),),
        "key_proj.weight": (WeightPart("key.weight", (d, d)),),
        "value_proj.weight": (WeightPart("value.weight", (d, d)),),
        "receptance_proj.weight": (WeightPart("receptance.weight", (d, d)),),
        "gate_proj.weight": (WeightPart("gate.weight", (d, d)),),
        "out_proj.weight": (WeightPart("output.weight", (d, d)),),
        **map_norm("head_norm", "ln_x", d),
    }


def _map_channel_mix(d_model: int, ffn_dim: int) -> Plan:
    """Return the parts of a channel mix."""
    return {
        "key_mix": (_vector("time_maa_k", (1, 1, d_model)),),
        "receptance_mix": (_vector("time_maa_r", (1, 1, d_model)),),
        "key_proj.weight": (WeightPart("key.weight", (ffn_dim, d_model)),),
        "value_proj.weight": (WeightPart("value.weight", (d_model, ffn_dim)),),
        "receptance_proj.weight": (WeightPart("receptance.weight", (d_model, d_model)),),
    }


def _vector(name: str, shape: Shape) -> WeightPart:
    """Return a tensor of the file whose values, in order, are a vector here."""
    return WeightPart(name, shape, convert=flatten)


def flatten(stored: "Tensor") -> "Tensor":
    """Return the values of a tensor in order."""
    return stored.flatten()


FORMAT = Format(
    recognises=lambda raw: raw.get("model_type") == "rwkv6" and "head_size" in raw,
    describe=describe,
    plan=plan,
    ignored=r"$.",  # every tensor is a weight
)
