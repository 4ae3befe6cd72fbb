"""Checkpoints of flash-linear-attention's RWKV-6.

Its low ranks are stored transposed, and its inputs in the order r, w, k, v, g. There `norm_eps` is that of all norms,
the norm of the heads included; the published RWKV-6 has 64 times as much in the latter.

Source: fla-org/flash-linear-attention, `fla/models/rwkv6/`, `fla/layers/rwkv6.py`, `utils/convert_from_rwkv6.py`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from retbench.architectures.configs import ModelConfig
from retbench.architectures.rwkv6 import rwkv_config
from retbench.checkpoints.format import Description, Fields, Format, Plan, Shape, WeightPart, prefixed
from retbench.checkpoints.rwkv6 import flatten, map_norm
from retbench.errors import CheckpointError
from retbench.mixers.rwkv.config import RwkvTimeMix

if TYPE_CHECKING:
    from torch import Tensor

_ORDER = (1, 2, 3, 0, 4)
"""Place of w, k, v, r and g, the order here, in r, w, k, v, g."""


class _Rwkv6Fields(Fields):
    """Fields with fla's own defaults, since its files may omit them."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_heads: int = Field(default=4, ge=1)
    expand_k: float = 0.5
    expand_v: float = 1.0
    hidden_ratio: float | None = 3.5
    intermediate_size: int | None = None
    hidden_act: Literal["sqrelu"] = "sqrelu"
    proj_low_rank_dim: int = Field(default=32, ge=1)
    gate_low_rank_dim: int = Field(default=64, ge=1)
    norm_first: Literal[True] = True
    norm_bias: Literal[True] = True
    norm_eps: float = 1e-5
    max_position_embeddings: int | None = 2048
    vocab_size: int = 32000
    tie_word_embeddings: bool = False
    attn: None = None
    """Attention layers among the layers of RWKV-6."""

    def resolve(self, path: Path) -> ModelConfig:
        """Return the model; CheckpointError for widths of keys and values that models here do not have."""
        if self.expand_k != 1 or self.expand_v != 1:
            raise CheckpointError(
                f"{path}: expand_k {self.expand_k} and expand_v {self.expand_v}; keys and values of an RWKV-6 here are "
                "as wide as the model (1.0), as in the published one."
            )
        mixer = RwkvTimeMix(
            d_model=self.hidden_size,
            num_heads=self.num_heads,
            mix_rank=self.proj_low_rank_dim,
            decay_rank=self.gate_low_rank_dim,
            norm_eps=self.norm_eps,
        )
        # `RWKV6FeedForward`: up to a multiple of 32.
        width = 32 * -(-int(self.hidden_size * (self.hidden_ratio or 3.5)) // 32)
        return rwkv_config(
            mixer,
            num_layers=self.num_hidden_layers,
            vocab_size=self.vocab_size,
            ffn_dim=self.intermediate_size or width,
            norm_eps=self.norm_eps,
        )


def describe(raw: dict[str, Any], path: Path) -> Description:
    """Read a configuration; CheckpointError if it is invalid, or of a model that this package does not have."""
    fields = _Rwkv6Fields.model_validate(raw)
    return Description(
        config=fields.resolve(path),
        context_len=fields.max_position_embeddings,
        tied_embeddings=fields.tie_word_embeddings,
    )


def plan(described: Description, stored: Collection[str], ours: Mapping[str, Shape]) -> Plan:
    """Map the weights."""
    config = described.config
    d, table = config.d_model, (config.vocab_size, config.d_model)
    head = "model.embeddings.weight" if described.tied_embeddings else "lm_head.weight"
    found: Plan = {
        "embedding.weight": (WeightPart("model.embeddings.weight", table),),
        "head.weight": (WeightPart(head, table),),
        **map_norm("embedding_norm", "model.layers.0.pre_norm", d),
        **map_norm("norm", "model.norm", d),
    }
    for layer, block in enumerate(config.layers):
        assert isinstance(block.mixer, RwkvTimeMix)
        assert block.ffn is not None
        tensors = _map_time_mix(block.mixer) | _map_channel_mix(d, block.ffn.ffn_dim)
        parts = {
            **map_norm("mixer_norm", "attn_norm", d),
            **map_norm("ffn_norm", "ffn_norm", d),
            **{name: (tensor,) for name, tensor in tensors.items()},
            **map_norm("mixer.head_norm", "attn.g_norm", d),
        }
        found |= prefixed(parts, f"blocks.{layer}", f"model.layers.{layer}")
    return found


def _map_time_mix(mixer: RwkvTimeMix) -> dict[str, WeightPart]:
    """Return the tensor of each parameter of a time mix, without that of the head norm."""
    d, rank, decay_rank = mixer.d_model, mixer.mix_rank, mixer.decay_rank
    decay = "attn.w_proj.linear.lora"
    projections = {"key": "k", "value": "v", "receptance": "r", "gate": "g"}
    return {
        "mixer.mix": WeightPart("attn.x_bias", (5, d), convert=_reorder_vectors),
        "mixer.mix_input": WeightPart("attn.x_proj.0.mu", (d,)),
        "mixer.mix_down": WeightPart("attn.x_proj.0.linear.weight", (5 * rank, d), convert=_reorder_down),
        "mixer.mix_up": WeightPart("attn.x_proj.2.weight", (d, 5 * rank), convert=_reorder_up),
        "mixer.log_rate": WeightPart(f"{decay}.2.bias", (d,)),
        "mixer.decay_down": WeightPart(f"{decay}.0.weight", (decay_rank, d), convert=_transpose),
        "mixer.decay_up": WeightPart(f"{decay}.2.weight", (d, decay_rank), convert=_transpose),
        "mixer.bonus": WeightPart("attn.bonus", (mixer.num_heads, mixer.head_dim), convert=flatten),
        "mixer.out_proj.weight": WeightPart("attn.o_proj.weight", (d, d)),
        **{
            f"mixer.{name}_proj.weight": WeightPart(f"attn.{letter}_proj.linear.weight", (d, d))
            for name, letter in projections.items()
        },
    }


def _map_channel_mix(d_model: int, ffn_dim: int) -> dict[str, WeightPart]:
    """Return the tensor of each parameter of a channel mix."""
    return {
        "ffn.key_mix": WeightPart("ffn.key.mu", (d_model,)),
        "ffn.receptance_mix": WeightPart("ffn.receptance.mu", (d_model,)),
        "ffn.key_proj.weight": WeightPart("ffn.key.linear.weight", (ffn_dim, d_model)),
        "ffn.value_proj.weight": WeightPart("ffn.value.weight", (d_model, ffn_dim)),
        "ffn.receptance_proj.weight": WeightPart("ffn.receptance.linear.weight", (d_model, d_model)),
    }


def _reorder_vectors(stored: "Tensor") -> "Tensor":
    """(5, D) to (5 D,)."""
    return stored[list(_ORDER)].flatten()


def _reorder_down(stored: "Tensor") -> "Tensor":
    """(5 rank, D) to (D, 5 rank)."""
    groups: Tensor = stored.unflatten(0, (len(_ORDER), -1))
    return groups[list(_ORDER)].flatten(0, 1).t()


def _reorder_up(stored: "Tensor") -> "Tensor":
    """(D, 5 rank) to (5, rank, D)."""
    groups: Tensor = stored.unflatten(1, (len(_ORDER), -1))
    return groups.permute(1, 2, 0)[list(_ORDER)]


def _transpose(stored: "Tensor") -> "Tensor":
    return stored.t()


FORMAT = Format(
    recognises=lambda raw: raw.get("model_type") == "rwkv6" and "head_size" not in raw,
    describe=describe,
    plan=plan,
    ignored=r"lm_head\.weight",  # the unused head of a model with tied embeddings
)
