"""Our own checkpoints: `model.safetensors` under the model's own names, and a `config.json` that says what it is."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from retbench.architectures.configs import ModelConfig
from retbench.checkpoints.config_file import parse
from retbench.checkpoints.info import Description
from retbench.checkpoints.mapping import Part, Plan, Shape
from retbench.errors import CheckpointError
from retbench.strict import Strict

NAME: Literal["retbench"] = "retbench"
VERSION: Literal[2] = 2
IGNORED = r"(?!)"
"""Nothing: every tensor of ours is a weight."""


class NativeConfig(Strict):
    """What `config.json` holds."""

    format: Literal["retbench"] = NAME
    format_version: Literal[1, 2] = VERSION
    """1: the model is one flat table, as records had it before mixers."""
    config: ModelConfig
    context_len: int | None = None
    tokenizer: str | None
    tokenizer_fingerprint: str | None
    weights_fingerprint: str
    metadata: dict[str, Any] = Field(default_factory=dict)


def recognises(raw: Mapping[str, Any]) -> bool:
    """Whether a configuration is of a checkpoint of ours."""
    return raw.get("format") == NAME


def describe(raw: dict[str, Any], path: Path) -> Description:
    """What a configuration says; CheckpointError where it is none of ours, or of a later version."""
    version = raw.get("format_version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"{path}: format_version is {version}, this retbench reads up to {VERSION}. Use a newer one."
        )
    found = parse(NativeConfig, raw, path)
    return Description(
        found.config,
        found.context_len,
        tokenizer=found.tokenizer,
        tokenizer_fingerprint=found.tokenizer_fingerprint,
        weights_fingerprint=found.weights_fingerprint,
        metadata=found.metadata,
    )


def plan(described: Description, stored: Collection[str], ours: Mapping[str, Shape]) -> Plan:
    """Every tensor where it is: under its own name."""
    return {name: (Part(name, shape),) for name, shape in ours.items()}
