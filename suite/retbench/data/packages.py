"""Packages that only some data needs, imported when it is read."""

import importlib
from typing import Any

from retbench.errors import UnsupportedError


def load_package(package: str, purpose: str) -> Any:
    """The module called `package`.

    Args:
        package: Its name for `import`.
        purpose: What needs it, the subject of a sentence, e.g. "A SentencePiece model".

    Raises:
        UnsupportedError: it is not installed, or cannot be imported here.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UnsupportedError(
            f"{purpose} needs the package '{package}', which cannot be imported here ({error}). "
            f"Install it: pip install {package.replace('_', '-')}"
        ) from error
