"""What the report and the checks ask an architecture by its name: title, role, and what stands out in a record.

A record may be of an architecture that is not installed here; it is then shown under its own name.
"""

from collections.abc import Mapping
from typing import Any

_TITLES = {"retnet": "RetNet", "transformer": "Transformer"}
_BASELINES = frozenset({"transformer"})
_USUAL_RETNET = {
    "variant": "fla",
    "decay": "eq8",
    "swish_gate": True,
    "head_norm": True,
    "backend": "chunkwise",
    "chunk_size": 128,
}


def title_of(architecture: str) -> str:
    """Return the proper name of an architecture: 'retnet' -> 'RetNet'; an unknown one is its own title."""
    return _TITLES.get(architecture, architecture)


def is_baseline(architecture: str) -> bool:
    """Return whether other models are compared with this architecture (the Transformer)."""
    return architecture in _BASELINES


def has_cache(architecture: str) -> bool:
    """Return whether its state grows with the context (a key-value cache)."""
    return architecture in _BASELINES


def is_standard(architecture: str, config: Mapping[str, Any]) -> bool:
    """Return whether a model lacks nothing that its paper describes; ablations do."""
    has_parts = config.get("swish_gate", True) and config.get("head_norm", True)
    return architecture != "retnet" or (has_parts and config.get("decay", "eq8") in ("eq8", "paper"))


def unusual_settings(architecture: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return in words what differs from the architecture's defaults: ['decay gated', 'chunk size 512']."""
    if architecture != "retnet":
        return []
    has = {**settings, **config}
    return [
        f"{name.replace('_', ' ')} {has[name]}"
        for name, usual in _USUAL_RETNET.items()
        if has.get(name, usual) != usual
    ]


def baseline_features(
    architecture: str, config: Mapping[str, Any], backend: Mapping[str, Any]
) -> frozenset[str]:
    """Return what makes a baseline strong, as it ran: 'fused' attention, 'grouped' queries, CUDA 'graphs'."""
    if architecture not in _BASELINES:
        return frozenset()
    found = set()
    ran = str(backend.get("decode", backend.get("training", backend.get("prefill", ""))))
    if ran.startswith("flash") or (ran.startswith("sdpa") and not ran.endswith(":math")):
        found.add("fused")
    if config.get("num_kv_heads", 0) < config.get("num_heads", 0):
        found.add("grouped")
    if backend.get("cuda_graph") or backend.get("compile"):
        found.add("graphs")
    return frozenset(found)
