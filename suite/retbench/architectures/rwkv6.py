"""RWKV-6 and, as its variant with fixed decays and interpolations, RWKV-5 (arXiv:2404.05892)."""

from typing import Any, Literal

from pydantic import Field

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.matching import choose_width
from retbench.architectures.sizes import Size
from retbench.mixers.rwkv.config import RwkvChannelMix, RwkvTimeMix

Variant = Literal["v6", "v5"]


class RwkvSpec(ModelSpec):
    """A `[models.NAME]` table with architecture = "rwkv6"."""

    architecture: Literal["rwkv6"]
    variant: Variant = "v6"
    """v6: decays and token shifts depend on the data. v5: they are fixed, as in RWKV-5."""
    ffn_dim: FfnWidth = "matched"
    backend: Literal["parallel", "chunkwise", "chunkwise_fp32", "recurrent", "fla", "fla_recurrent"] = (
        "chunkwise"
    )
    """chunkwise: products in the model's dtype. chunkwise_fp32: in float32 or wider. fla: chunkwise by
    flash-linear-attention's kernels, on CUDA; their chunk is fixed (see `FLA_CHUNK_SIZE`). fla_recurrent: token by
    token by its kernel."""
    chunk_size: int | None = Field(default=64, ge=1)
    """Tokens of a chunk of the chunkwise form."""


def rwkv_config(
    mixer: RwkvTimeMix, *, num_layers: int, vocab_size: int, ffn_dim: int, norm_eps: float = 1e-5
) -> ModelConfig:
    """Return an RWKV-6, or RWKV-5, of given sizes; pydantic's ValidationError where they do not go together."""
    ffn = RwkvChannelMix(d_model=mixer.d_model, ffn_dim=ffn_dim)
    return ModelConfig(
        architecture="rwkv6",
        variant="v6" if mixer.mix_rank or mixer.decay_rank else "v5",
        d_model=mixer.d_model,
        vocab_size=vocab_size,
        norm="layer",
        norm_eps=norm_eps,
        embedding_norm=True,
        blocks=(BlockConfig(count=num_layers, mixer=mixer, ffn=ffn),),
    )


def _resolve(spec: RwkvSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size."""
    fixed: dict[str, Any] = {"mix_rank": 0, "decay_rank": 0}
    mixer = RwkvTimeMix.at_size(size, **(fixed if spec.variant == "v5" else {}))

    def make(ffn_dim: int) -> ModelConfig:
        return rwkv_config(mixer, num_layers=size.num_layers, vocab_size=size.vocab_size, ffn_dim=ffn_dim)

    return choose_width(make, spec.ffn_dim, size, published_ffn(size.d_model))


def published_ffn(d_model: int) -> int:
    """Return the width of the channel mix in the published code: 3.5 d, down to a multiple of 32."""
    return 7 * d_model // 2 // 32 * 32


ARCHITECTURE = Architecture(
    name="rwkv6",
    title="RWKV-6",
    reference="arXiv:2404.05892",
    spec=RwkvSpec,
    resolve=_resolve,
    presets={"v6": {"variant": "v6"}, "v5": {"variant": "v5"}},
    formats=("retbench.checkpoints.rwkv6", "retbench.checkpoints.fla_rwkv6"),
    unusual=lambda config: [] if config.variant == "v6" else ["as RWKV-5"],
)
