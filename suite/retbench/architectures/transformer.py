"""The Transformer with rotary positions and without biases: Llama's blocks, or GPT's; grouped queries as an option."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.matching import check_divides, choose_width, swiglu_width
from retbench.architectures.sizes import Size
from retbench.mixers.attention.config import Attention, Cache
from retbench.mixers.feed_forward import FeedForward
from retbench.mixers.softmax_attention import RotaryScaling
from retbench.ops import ROTARY_BASE

Variant = Literal["llama", "gpt"]
Backend = Literal["auto", "reference", "sdpa", "products", "flash", "flash3", "flash4"]


class TransformerSpec(ModelSpec):
    """A `[models.NAME]` table with architecture = "transformer"."""

    architecture: Literal["transformer"]
    variant: Variant = "llama"
    """llama: RMSNorm and SwiGLU. gpt: LayerNorm and a GELU feed-forward. Both: rotary positions, no biases."""
    ffn_dim: FfnWidth = "matched"
    num_kv_heads: Annotated[int, Field(ge=1)] | Literal["quarter"] | None = None
    """Key and value heads; fewer than the query heads is grouped-query attention (GQA), and 1 is multi-query attention
    (MQA). quarter: one for four query heads, at least 1, as in Llama 3 8B and Mistral 7B. None: as many as queries."""
    cache: Cache = "preallocated"
    """Growth of the key-value cache; "concat" copies all of it at every token, as a plain implementation does."""
    backend: Backend = "auto"
    chunk_size: None = None
    """Attention has no chunks."""

    @property
    def concatenates(self) -> bool:
        """True if the cache is copied at every token."""
        return self.cache == "concat"


def transformer_config(
    *,
    d_model: int,
    num_layers: int,
    num_heads: int,
    vocab_size: int,
    ffn_dim: int,
    num_kv_heads: int,
    variant: Variant = "llama",
    norm_eps: float = 1e-6,
    rotary_base: float = ROTARY_BASE,
    rotary_scaling: RotaryScaling | None = None,
    cache: Cache = "preallocated",
) -> ModelConfig:
    """Return a Transformer of given sizes; pydantic's ValidationError where they do not go together.

    Args:
        d_model: Width of the model.
        num_layers: Blocks.
        num_heads: Query heads.
        vocab_size: Rows of the embedding table.
        ffn_dim: Width of the feed-forward.
        num_kv_heads: Key and value heads.
        variant: See `TransformerSpec.variant`.
        norm_eps: Of all norms.
        rotary_base: Of the rotary positions.
        rotary_scaling: For contexts longer than the original one.
        cache: See `TransformerSpec.cache`.
    """
    is_llama = variant == "llama"
    mixer = Attention(
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        rotary_base=rotary_base,
        rotary_scaling=rotary_scaling,
        cache=cache,
    )
    ffn = FeedForward(kind="swiglu" if is_llama else "gelu", d_model=d_model, ffn_dim=ffn_dim)
    return ModelConfig(
        architecture="transformer",
        variant=variant,
        d_model=d_model,
        vocab_size=vocab_size,
        norm="rms" if is_llama else "layer",
        norm_eps=norm_eps,
        blocks=(BlockConfig(count=num_layers, mixer=mixer, ffn=ffn),),
    )


def _resolve(spec: TransformerSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size."""
    heads = size.attention_heads
    kv_heads = max(1, heads // 4) if spec.num_kv_heads == "quarter" else spec.num_kv_heads or heads
    check_divides("num_kv_heads", kv_heads, f"the {heads} query heads", heads)
    published = 4 * size.d_model if spec.variant == "gpt" else swiglu_width(size.d_model)

    def make(ffn_dim: int) -> ModelConfig:
        return transformer_config(
            variant=spec.variant,
            d_model=size.d_model,
            num_layers=size.num_layers,
            num_heads=heads,
            vocab_size=size.vocab_size,
            ffn_dim=ffn_dim,
            num_kv_heads=kv_heads,
            cache=spec.cache,
        )

    return choose_width(make, spec.ffn_dim, size, published)


def _features(config: ModelConfig, backend: Mapping[str, Any]) -> frozenset[str]:
    """Return what makes this baseline strong or weak, as it was run; see `Architecture.features`."""
    mixer = config.mixer
    if not isinstance(mixer, Attention):  # a record may say anything
        return frozenset()
    ran = str(backend.get("decode", backend.get("training", backend.get("prefill", ""))))
    kernels = ran.split("+")  # the last query of a prompt may have another than the rest
    fused = any(
        one.startswith("flash") or (one.startswith("sdpa") and not one.endswith(":math")) for one in kernels
    )
    applies = {
        "fused": fused,
        "products": "products" in kernels and not fused,
        "grouped": mixer.num_kv_heads < mixer.num_heads,
        "graphs": bool(backend.get("cuda_graph") or backend.get("compile")),
        "concatenated": mixer.cache == "concat",
    }
    return frozenset(name for name, has in applies.items() if has)


ARCHITECTURE = Architecture(
    name="transformer",
    title="Transformer",
    reference="arXiv:1706.03762, with the blocks of arXiv:2302.13971",
    spec=TransformerSpec,
    resolve=_resolve,
    presets={
        "llama": {"variant": "llama"},
        "gqa": {"num_kv_heads": "quarter"},
        "mqa": {"num_kv_heads": 1},
        "gpt": {"variant": "gpt"},
    },
    is_baseline=True,
    order=2,
    upgrade=transformer_config,
    formats=("retbench.checkpoints.fla", "retbench.checkpoints.llama", "retbench.checkpoints.llama2c"),
    features=_features,
)
