"""Facts about the model of a record, which the report reads from its architecture's name and its configuration.

A record may be of an architecture that is not installed here: then nothing about it is known, and nothing is assumed.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from retbench.architectures import costs
from retbench.architectures.architecture import Architecture
from retbench.architectures.configs import ModelConfig, form_of, parse_model_config
from retbench.architectures.registry import architectures
from retbench.errors import ConfigError
from retbench.mixers.mixer import DTYPE_BYTES, Mixer
from retbench.records.record import ModelInfo


def read_config(info: ModelInfo) -> ModelConfig | None:
    """Return the configuration of a record's model; None where its architecture or mixers are not known here."""
    try:
        return parse_model_config({**info.config, "architecture": info.architecture})
    except (ValidationError, ConfigError, KeyError):
        return None


def _find(info: ModelInfo) -> tuple[Architecture | None, ModelConfig | None]:
    """Return the architecture and the configuration of a record's model; None for one that is not known here."""
    return architectures().get(info.architecture), read_config(info)


def is_matched(info: ModelInfo) -> bool:
    """Return whether a model was made to match a size; one that is not known here counts as matched."""
    model = read_config(info)
    return model is None or model.whole_model is None


def config_facts(info: ModelInfo) -> dict[str, Any]:
    """Return a model's configuration as one flat table; of several mixers the fields are led by the mixer's name."""
    model = read_config(info)
    if model is None:
        return {name: value for name, value in info.config.items() if not isinstance(value, list | dict)}
    names = ["d_model", "num_layers", "vocab_size"]
    if model.whole_model is None:
        names += ["norm", "norm_eps"]
    facts: dict[str, Any] = {name: getattr(model, name) for name in names}
    for mixer in model.mixers:
        lead = f"{mixer.mixer}." if len(model.mixers) > 1 else ""
        facts |= {lead + name: value for name, value in mixer.model_dump().items() if name not in names}
    if model.ffn is not None:
        facts |= {"ffn": model.ffn.kind, "ffn_dim": model.ffn.ffn_dim}
    return facts


def has_cache(info: ModelInfo) -> bool:
    """Return whether a model's state grows with the context, as a key-value cache does; False if not known here."""
    _, model = _find(info)
    return model is not None and model.grows


def weight_bytes(info: ModelInfo, dtype: str) -> int | None:
    """Return the analytical bytes of a model's weights; None if not known here."""
    model = _read_sized(info, dtype)
    return None if model is None else costs.weight_bytes(model, dtype)


def state_bytes(info: ModelInfo, dtype: str, context_len: int, batch_size: int = 1) -> int | None:
    """Return the analytical bytes of state or cache of sequences of `context_len` tokens; None if not known here."""
    model = _read_sized(info, dtype)
    return None if model is None else costs.state_bytes(model, dtype, batch_size, context_len)


def _read_sized(info: ModelInfo, dtype: str) -> ModelConfig | None:
    """Return the configuration of a record's model; None where no formula for its bytes at this dtype is known here."""
    model = read_config(info)
    return None if model is None or dtype not in DTYPE_BYTES or costs.missing_reason(model) else model


def is_standard(info: ModelInfo) -> bool:
    """Return whether a model lacks nothing that its paper describes; ablations do."""
    known, model = _find(info)
    return known is None or model is None or (known.is_standard(model) and not model.convolution_first)


def unusual_settings(info: ModelInfo, settings: Mapping[str, Any]) -> list[str]:
    """Return in words what differs from the architecture's defaults: ['decay gated', 'chunk size 512'].

    `baseline_features` has the options of a baseline.
    """
    known, model = _find(info)
    if known is None or model is None or known.is_baseline:
        return []
    words = known.unusual(model) + (["concat cache"] if model.concatenates else [])
    words += ["short convolution first"] if model.convolution_first else []
    backend, chunk_size = str(settings.get("backend", "")), settings.get("chunk_size")
    if any(form_of(mixer, backend) not in _usual_forms(mixer) for mixer in model.mixers):
        words.append(f"backend {backend}")
    if chunk_size is not None and chunk_size != model.chunk_size("", None):
        words.append(f"chunk size {chunk_size}")
    return words


def _usual_forms(mixer: Mixer) -> set[str]:
    """Return the default form, and the one that reads prompts as it does: records state what decode steps executed."""
    return {mixer.default_form, mixer.forms[mixer.default_form].reads_as or mixer.default_form}


def concatenates_cache(info: ModelInfo) -> bool:
    """Return whether a model copies its key-value cache at every token, which no strong baseline does."""
    _, model = _find(info)
    return model is not None and model.concatenates


def baseline_features(info: ModelInfo, backend: Mapping[str, Any]) -> frozenset[str]:
    """Return what makes a baseline strong, as it ran: 'fused' attention, 'grouped' queries, CUDA 'graphs'.

    A cache that is 'concatenated' makes it weak.
    """
    known, model = _find(info)
    return known.features(model, backend) if known and model else frozenset()
