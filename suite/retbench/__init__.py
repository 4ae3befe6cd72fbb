"""retbench: is RetNet a successor to the Transformer? Matched models, one harness, every number traceable."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retbench.api import compare as compare
    from retbench.api import load as load
    from retbench.api import run as run

__version__ = "0.1.0"

_FUNCTIONS = ("compare", "load", "run")
"""Functions of `retbench.api`, which is imported when one of them is used: `import retbench` loads nothing."""


def __getattr__(name: str) -> Any:
    """Return a function of the Python interface."""
    if name in _FUNCTIONS:
        return getattr(import_module("retbench.api"), name)
    raise AttributeError(f"module 'retbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the names of the package, those that are imported on use included."""
    return sorted({*globals(), *_FUNCTIONS})
