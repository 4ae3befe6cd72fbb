"""Checkpoints of transformers' MistralForCausalLM: Llama's tensors, and attention to a sliding window.

Source: huggingface/transformers, `models/mistral/configuration_mistral.py`, `models/mistral/modeling_mistral.py`.
"""

from pathlib import Path
from typing import Any

from pydantic import Field

from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.checkpoints import llama
from retbench.checkpoints.format import Description, Fields, Format
from retbench.mixers.window_attention.config import WindowAttention


class _MistralFields(Fields):
    sliding_window: int | None = Field(default=4096, ge=1)
    """Tokens that a query attends to, the own one included; null is the whole context, as from version 0.2 on."""


def describe(raw: dict[str, Any], path: Path) -> Description:
    """Read a configuration; CheckpointError if it is invalid, or of a model that this package does not have."""
    window = _MistralFields.model_validate(raw).sliding_window
    described = llama.describe(raw, path)
    if window is None:
        return described
    return described.model_copy(update={"config": _with_window(described.config, window)})


def _with_window(config: ModelConfig, window: int) -> ModelConfig:
    """Return a Transformer with a sliding window in all layers, without sinks."""
    shared = {name: value for name, value in config.mixer.model_dump().items() if name != "mixer"}
    mixer = WindowAttention.model_validate({**shared, "window": window, "sinks": 0})
    block = BlockConfig(count=config.num_layers, mixer=mixer, ffn=config.ffn)
    return config.model_copy(update={"architecture": "sliding_window", "blocks": (block,)})


FORMAT = Format(
    recognises=lambda raw: (
        raw.get("model_type") == "mistral" or raw.get("architectures") == ["MistralForCausalLM"]
    ),
    describe=describe,
    plan=llama.FORMAT.plan,
    ignored=llama.FORMAT.ignored,
)
