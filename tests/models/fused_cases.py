"""Models whose decode steps the fused operators compute: every mixer, norm, layout, decay and feed-forward."""

from typing import get_args

from retbench.architectures.gla import GlaSpec
from retbench.architectures.linear import LinearSpec
from retbench.architectures.mamba2 import Mamba2Spec
from retbench.architectures.matching import resolve_model
from retbench.architectures.rwkv6 import RwkvSpec
from retbench.architectures.sliding_window import SlidingWindowSpec
from retbench.mixers.linear_attention.config import FeatureMap
from tests.models.cases import config_of

CASES = (
    "fla",
    "torchscale",
    "yoco",
    "paper",
    "paper-no-swish-gate",
    "paper-no-head-norm",
    "llama-grouped-query",
    "llama-concat",
    "gpt",
    "mla",
    "mla-compressed",
)


ONE_LAYER = (
    "torchscale",
    "yoco",
    "paper",
    "paper-no-swish-gate",
    "paper-no-head-norm",
    "linear-elu",
    "linear-performer",
    "linear-taylor",
    "gpt",
    "mla-compressed",
    "rwkv5",
    "convolution-first",
)
"""Cases that differ from another one within a layer only: that one shows that layers keep to their own states."""


def fused_configs():
    """Return the configuration of each case by name, cut to one or two layers where all layers are alike."""
    made = {name: config_of(name) for name in CASES}
    for variant in get_args(FeatureMap):
        made[f"linear-{variant}"] = resolve_model(LinearSpec(architecture="linear", variant=variant), "1m")
    window = SlidingWindowSpec(architecture="sliding_window", window=9, sinks=2)
    made["sliding-window"] = resolve_model(window, "1m")
    made["mamba2"] = resolve_model(Mamba2Spec(architecture="mamba2", num_groups=2), "1m")
    made["gla"] = resolve_model(GlaSpec(architecture="gla"), "1m")
    made["rwkv6"] = resolve_model(RwkvSpec(architecture="rwkv6"), "1m")
    made["rwkv5"] = resolve_model(RwkvSpec(architecture="rwkv6", variant="v5"), "1m")
    made["convolution-first"] = resolve_model(GlaSpec(architecture="gla", convolution_first=True), "1m")
    cut = {name: _with_layers(config, 1 if name in ONE_LAYER else 2) for name, config in made.items()}
    return {**cut, **{name: config_of(name) for name in ("yoco-gated", "yoco-sw")}}


def _with_layers(config, count):
    block = config.blocks[0].model_copy(update={"count": count})
    return config.model_copy(update={"blocks": (block,)})
