"""The recipe: layers of minGRU and a feed-forward, matched in parameters."""

from typing import Literal

from min_gru.config import MinGru
from retbench.architectures.architecture import Architecture, ModelSpec
from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.matching import solve_width
from retbench.architectures.sizes import Size
from retbench.mixers.feed_forward import FeedForward


class MinGruSpec(ModelSpec):
    """A `[models.NAME]` table with architecture = "min_gru"."""

    architecture: Literal["min_gru"]
    backend: Literal["chunkwise", "recurrent"] = "chunkwise"


def resolve(spec: MinGruSpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size: the feed-forward is as wide as the size's parameters allow."""

    def make(ffn_dim: int) -> ModelConfig:
        ffn = FeedForward(d_model=size.d_model, ffn_dim=ffn_dim)
        block = BlockConfig(count=size.num_layers, mixer=MinGru.at_size(size), ffn=ffn)
        shape = {"d_model": size.d_model, "vocab_size": size.vocab_size}
        return ModelConfig(architecture="min_gru", variant="plain", blocks=(block,), **shape)

    return solve_width(make, size)


ARCHITECTURE = Architecture(
    name="min_gru",
    title="minGRU",
    reference="arXiv:2410.01201",
    spec=MinGruSpec,
    resolve=resolve,
    presets={"plain": {}},
    mixers=(MinGru,),
)
