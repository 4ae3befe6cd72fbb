"""Mamba-2 (arXiv:2405.21060): blocks of one layer without a feed-forward, two for each block of a Transformer."""

from typing import Literal

from pydantic import Field

from retbench.architectures.architecture import Architecture, FfnWidth, ModelSpec
from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.matching import check_divides, choose_width
from retbench.architectures.sizes import Size
from retbench.mixers.mamba2.config import HEAD_WIDTH, Mamba2

WHOLE_HEADS_FROM = 2048
"""Width of a model from which on one head of 64 is less than 1.6 % of a layer."""


class Mamba2Spec(ModelSpec):
    """A `[models.NAME]` table with architecture = "mamba2"."""

    architecture: Literal["mamba2"]
    inner_dim: FfnWidth = "matched"
    """Inner width of a layer: solved for the size's budget, 'published' for 2 d_model, or a number."""
    state_size: int | None = Field(default=None, ge=1)
    """Columns of B and C of one group; 128 when absent, or a quarter of d_model where that is less."""
    num_groups: int = Field(default=1, ge=1)
    """Groups of heads, each with its own B and C."""
    backend: Literal["parallel", "chunkwise", "chunkwise_fp32", "recurrent", "fla", "mamba_ssm"] = "chunkwise"
    chunk_size: int | None = Field(default=64, ge=1)


def mamba2_config(mixer: Mamba2, *, num_layers: int, vocab_size: int) -> ModelConfig:
    """Return the model of one layer repeated; its norms have the epsilon of the layer's norm."""
    return ModelConfig(
        architecture="mamba2",
        variant="mamba2",
        d_model=mixer.d_model,
        vocab_size=vocab_size,
        norm_eps=mixer.norm_eps,
        blocks=(BlockConfig(count=num_layers, mixer=mixer),),
    )


def _resolve(spec: Mamba2Spec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size.

    From a d_model of 2048 on, a solved width is whole heads of 64. One head of 64 would be too coarse for smaller
    sizes (6 % of the layer at 512): they keep the number of heads of the published width, and solve the width of each.
    """
    usual = Mamba2.at_size(size)
    whole_heads = size.d_model >= WHOLE_HEADS_FROM
    step = HEAD_WIDTH * spec.num_groups if whole_heads else usual.num_heads
    check_divides("num_groups", spec.num_groups, f"the {usual.num_heads} heads", usual.num_heads)
    if isinstance(spec.inner_dim, int):
        check_divides("the step of the inner width", step, f"inner_dim {spec.inner_dim}", spec.inner_dim)
    state_size = spec.state_size or usual.state_size

    def make(inner_dim: int) -> ModelConfig:
        heads = inner_dim // HEAD_WIDTH if whole_heads else usual.num_heads
        groups = {"num_groups": spec.num_groups, "state_size": state_size}
        mixer = Mamba2.at_size(size, inner_dim=inner_dim, num_heads=heads, **groups)
        return mamba2_config(mixer, num_layers=2 * size.num_layers, vocab_size=size.vocab_size)

    return choose_width(make, spec.inner_dim, size, usual.inner_dim, step=step)


ARCHITECTURE = Architecture(
    name="mamba2",
    title="Mamba-2",
    reference="arXiv:2405.21060",
    spec=Mamba2Spec,
    resolve=_resolve,
    presets={"mamba2": {}},
    formats=("retbench.checkpoints.mamba2",),
)
