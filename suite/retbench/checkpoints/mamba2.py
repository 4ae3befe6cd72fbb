"""Checkpoints of Mamba-2: those of transformers' Mamba2ForCausalLM, and those of state-spaces/mamba.

Both have the same tensors, except that transformers writes `embeddings` where mamba writes `embedding`. The rows of
`in_proj` are z, x, B, C and dt, in this order, as here.

Source: huggingface/transformers, `models/mamba2/{configuration,modeling}_mamba2.py`; state-spaces/mamba,
`mamba_ssm/models/{config_mamba,mixer_seq_simple}.py` and `mamba_ssm/modules/mamba2.py`.
"""

from collections.abc import Collection, Mapping
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from retbench.architectures.mamba2 import mamba2_config
from retbench.checkpoints.format import Description, Fields, Format, Plan, Shape, WeightPart, prefixed
from retbench.errors import CheckpointError
from retbench.mixers.mamba2.config import Mamba2
from retbench.strict import Strict

TRANSFORMERS_EMBEDDING = "backbone.embeddings.weight"
MAMBA_EMBEDDING = "backbone.embedding.weight"


def _read_float(raw: object) -> object:
    """Return the number that transformers 5 writes as {"__float__": "Infinity"}; anything else as it is."""
    return raw["__float__"] if isinstance(raw, dict) and raw.keys() == {"__float__"} else raw


Limit = Annotated[float, BeforeValidator(_read_float)]


class _TransformersFields(Fields):
    """Fields with transformers' own defaults. Its `norm_before_gate` of old releases had no effect there either."""

    num_heads: int = 128
    head_dim: int = 64
    vocab_size: int = 32768
    hidden_size: int = 4096
    state_size: int = 128
    num_hidden_layers: int = 64
    layer_norm_epsilon: float = 1e-5
    conv_kernel: int = 4
    n_groups: int = 8
    use_bias: Literal[False] = False
    use_conv_bias: Literal[True] = True
    hidden_act: Literal["silu", "swish"] = "silu"
    time_step_limit: tuple[Limit, Limit] = (0.0, inf)
    tie_word_embeddings: bool = False

    def describe(self, path: Path) -> Description:
        """Return the model; CheckpointError for a limit on the time step."""
        _refuse_step_limit(self.time_step_limit, path)
        mixer = Mamba2(
            d_model=self.hidden_size,
            num_heads=self.num_heads,
            inner_dim=self.num_heads * self.head_dim,
            state_size=self.state_size,
            num_groups=self.n_groups,
            conv_width=self.conv_kernel,
            norm_eps=self.layer_norm_epsilon,
        )
        config = mamba2_config(mixer, num_layers=self.num_hidden_layers, vocab_size=self.vocab_size)
        return Description(config=config, tied_embeddings=self.tie_word_embeddings)


class _LayerFields(Strict):
    """Arguments of mamba's layer (`ssm_cfg`), with its own defaults. Those that are not here are refused."""

    layer: Literal["Mamba2"]
    d_state: int = 128
    d_conv: int = 4
    expand: int = 2
    headdim: int = 64
    ngroups: int = 1
    d_ssm: None = None
    rmsnorm: Literal[True] = True
    norm_before_gate: Literal[False] = False
    D_has_hdim: Literal[False] = False
    bias: Literal[False] = False
    conv_bias: Literal[True] = True
    dt_limit: tuple[float, float] = (0.0, inf)
    chunk_size: int = 256
    """It has no effect on the model."""


class _MambaFields(Fields):
    d_model: int
    n_layer: int
    vocab_size: int
    ssm_cfg: _LayerFields
    d_intermediate: Literal[0] = 0
    """Width of a feed-forward."""
    attn_layer_idx: tuple[()] = ()
    """Layers of attention among those of Mamba-2."""
    rms_norm: Literal[True] = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True

    def describe(self, path: Path) -> Description:
        """Return the model; CheckpointError for a limit on the time step, or heads that do not fit the width."""
        layer = self.ssm_cfg
        _refuse_step_limit(layer.dt_limit, path)
        inner_dim = layer.expand * self.d_model
        if layer.headdim < 1 or inner_dim % layer.headdim or self.pad_vocab_size_multiple < 1:
            raise CheckpointError(
                f"{path}: expand {layer.expand} times d_model {self.d_model} is not a multiple of headdim "
                f"{layer.headdim}, or pad_vocab_size_multiple {self.pad_vocab_size_multiple} is not positive."
            )
        mixer = Mamba2(
            d_model=self.d_model,
            num_heads=inner_dim // layer.headdim,
            inner_dim=inner_dim,
            state_size=layer.d_state,
            num_groups=layer.ngroups,
            conv_width=layer.d_conv,
        )
        multiple = self.pad_vocab_size_multiple
        vocab_size = multiple * -(-self.vocab_size // multiple)
        config = mamba2_config(mixer, num_layers=self.n_layer, vocab_size=vocab_size)
        return Description(config=config, tied_embeddings=self.tie_embeddings)


def _refuse_step_limit(limit: tuple[float, float], path: Path) -> None:
    """Raise CheckpointError if time steps are limited."""
    if limit != (0.0, inf):
        raise CheckpointError(
            f"{path}: time steps are limited to {limit[0]} .. {limit[1]}; models here have no limit (0 .. infinity)."
        )


def recognises(raw: Mapping[str, Any]) -> bool:
    """Return True for a configuration of transformers' Mamba-2, or of mamba's with a layer of Mamba-2."""
    layer = raw.get("ssm_cfg")
    return raw.get("model_type") == "mamba2" or (isinstance(layer, dict) and layer.get("layer") == "Mamba2")


def describe(raw: dict[str, Any], path: Path) -> Description:
    """Read a configuration; CheckpointError if it is invalid, or of a model that this package does not have."""
    fields = _MambaFields if "ssm_cfg" in raw else _TransformersFields
    return fields.model_validate(raw).describe(path)


def plan(described: Description, stored: Collection[str], ours: Mapping[str, Shape]) -> Plan:
    """Map the weights, with the name of the embedding that the file has."""
    config = described.config
    embedding = MAMBA_EMBEDDING if MAMBA_EMBEDDING in stored else TRANSFORMERS_EMBEDDING
    table, width = (config.vocab_size, config.d_model), (config.d_model,)
    head = embedding if described.tied_embeddings else "lm_head.weight"
    found: Plan = {
        "embedding.weight": (WeightPart(embedding, table),),
        "norm.weight": (WeightPart("backbone.norm_f.weight", width),),
        "head.weight": (WeightPart(head, table),),
    }
    for index, block in enumerate(config.layers):
        assert isinstance(block.mixer, Mamba2)
        norm = {"mixer_norm.weight": (WeightPart("norm.weight", width),)}
        parts = norm | prefixed(_map_mixer(block.mixer), "mixer", "mixer")
        found |= prefixed(parts, f"blocks.{index}", f"backbone.layers.{index}")
    return found


def _map_mixer(mixer: Mamba2) -> Plan:
    """Return the parts of a block's mixer, whose tensors have the same shapes here and in the file."""
    d, inner, channels, heads = mixer.d_model, mixer.inner_dim, mixer.conv_channels, (mixer.num_heads,)
    return {
        "in_proj.weight": (WeightPart("in_proj.weight", (inner + channels + mixer.num_heads, d)),),
        "conv_weight": (WeightPart("conv1d.weight", (channels, 1, mixer.conv_width)),),
        "conv_bias": (WeightPart("conv1d.bias", (channels,)),),
        "dt_bias": (WeightPart("dt_bias", heads),),
        "log_rate": (WeightPart("A_log", heads),),
        "skip": (WeightPart("D", heads),),
        "norm.weight": (WeightPart("norm.weight", (inner,)),),
        "out_proj.weight": (WeightPart("out_proj.weight", (d, inner)),),
    }


FORMAT = Format(
    recognises=recognises,
    describe=describe,
    plan=plan,
    # mamba stores the head of a model with tied embeddings too.
    ignored=r"lm_head\.weight",
)
