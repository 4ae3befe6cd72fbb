"""Which of the versions that a record states keep it apart from others."""

from collections.abc import Mapping
from typing import Any

_NEUTRAL = frozenset({"retbench", "nvidia-ml-py"})
"""Not what computes: the code itself, which has a revision of its own, and what reads the GPU's counters."""


def computing_versions(environment: Mapping[str, Any]) -> dict[str, str]:
    """Versions of Python and of every library that could move a number, by name; empty where none is recorded."""
    versions = environment.get("versions")
    stated = versions if isinstance(versions, dict) else {}
    return {name: str(version) for name, version in sorted(stated.items()) if name not in _NEUTRAL}
