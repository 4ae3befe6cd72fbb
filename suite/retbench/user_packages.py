"""Users' packages that add architectures and workloads through entry points, and what fails in them."""

import math
import traceback
from collections.abc import Container, Iterator, Set
from importlib import metadata
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from retbench.errors import ConfigError
from retbench.strict import explain

ARCHITECTURES, WORKLOADS = "retbench.architectures", "retbench.workloads"
"""Groups of entry points, which are named after the packages of retbench that they extend."""

OWN = __package__
"""Import name of this package."""

T = TypeVar("T")


def installed(group: str, kind: type[T], taken: Container[str]) -> Iterator[T]:
    """Yield the objects of users' packages in a group of entry points.

    Args:
        group: Name of the group.
        kind: Class of the objects, which have a `name`.
        taken: Names that they must not have; it may grow meanwhile.

    Raises:
        ConfigError: a package cannot be imported, gives something else, or takes a name twice.
    """
    for entry in metadata.entry_points(group=group):
        try:
            found: Any = entry.load()
        except Exception as error:  # whatever a foreign package raises when it is imported
            raise _unusable(entry, f"{type(error).__name__}: {error}") from error
        if kind not in type(found).__mro__:
            raise _unusable(entry, f"it is a {type(found).__name__} and no {kind.__module__}.{kind.__name__}")
        if found.name in taken:
            raise _unusable(entry, f"its name '{found.name}' is taken")
        yield found


def _unusable(entry: metadata.EntryPoint, reason: str) -> ConfigError:
    package = entry.dist.name if entry.dist else _top_level(entry.module)
    return ConfigError(
        f"package '{package}': its entry point '{entry.name}' ({entry.value}) cannot be used: {reason}. "
        f"Correct the package, or remove it: pip uninstall {package}"
    )


def _top_level(module: str) -> str:
    return module.partition(".")[0]


def package_of(kind: type) -> str:
    """Return the import name of the package that a class is of."""
    return _top_level(kind.__module__)


def package_names() -> frozenset[str]:
    """Return the import names of the installed packages that add to retbench."""
    groups = (metadata.entry_points(group=group) for group in (ARCHITECTURES, WORKLOADS))
    return frozenset(_top_level(entry.module) for group in groups for entry in group) - {OWN}


def is_amount(value: object) -> bool:
    """Return whether a value that a user's package gave is a finite number from 0 on."""
    return isinstance(value, int | float) and 0 <= value < math.inf


class Call(NamedTuple):
    """A call in a traceback."""

    package: str
    path: str
    line: int


def last_call(error: Exception, packages: Set[str]) -> Call:
    """Return the last call of some packages in an error's traceback, or of any where they have none."""
    calls = [
        Call(_top_level(str(frame.f_globals.get("__name__"))), frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return next((call for call in reversed(calls) if call.package in packages), calls[-1])


def message_of(error: Exception) -> str:
    """Return the message of any error on one line; of an error of pydantic each fault with its value."""
    if isinstance(error, ValidationError):
        return explain(error, BaseModel, error.title).replace("\n", " ")
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def fault(error: Exception, packages: Set[str], facts: str = "") -> ConfigError:
    """Return what failed in users' packages as a ConfigError that says where.

    Args:
        error: What was raised.
        packages: Import names of the packages that may be at fault.
        facts: What the message says besides, in sentences.
    """
    call = last_call(error, packages)
    named = call.package if call.package in packages else ", ".join(sorted(packages))
    what = f"{type(error).__name__}: {message_of(error).removesuffix('.')}"
    sentences = f"{facts} Correct the package." if facts else "Correct the package."
    return ConfigError(f"package '{named}': {what} (in {call.path}, line {call.line}). {sentences}")
