"""The formats by name: one row each, and one module with what differs between them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from retbench.architectures.registry import architectures
from retbench.checkpoints import native
from retbench.checkpoints.config_file import describe_errors
from retbench.checkpoints.info import Description
from retbench.checkpoints.mapping import Plan, Shape
from retbench.checkpoints.weights import Weights
from retbench.errors import CheckpointError, unknown_name


@dataclass(frozen=True)
class Format:
    """A way to store a model.

    Attributes:
        recognises: Whether a configuration is of this format.
        describe: What a configuration, from the file at the path, says.
        plan: Where the weights are, given what the configuration says, the names in the files, and our shapes.
        ignored: Names of tensors that may be there and are not weights, as a regular expression.
        check: What shapes do not show about the weights; CheckpointError where it is not as the configuration says.
    """

    recognises: Callable[[Mapping[str, Any]], bool]
    describe: Callable[[dict[str, Any], Path], Description]
    plan: Callable[[Description, Collection[str], Mapping[str, Shape]], Plan]
    ignored: str
    check: Callable[[Description, Weights], None] | None = None


def _format(module: ModuleType) -> Format:
    check: Callable[[Description, Weights], None] | None = getattr(module, "check", None)
    return Format(module.recognises, module.describe, module.plan, module.IGNORED, check)


def _known_formats() -> dict[str, Format]:
    """Return our own format, then those of each architecture, called after their modules."""
    found: dict[str, Format] = {native.NAME: _format(native)}
    for architecture in architectures().values():
        for path in architecture.formats:
            found[path.rpartition(".")[2]] = _format(import_module(path))
    return found


FORMATS: dict[str, Format] = _known_formats()


def check_name(name: str) -> None:
    """ConfigError where `name` is neither a format nor `auto`."""
    if name not in FORMATS and name != "auto":
        raise unknown_name("format", name, ["auto", *FORMATS], where="--format")


def recognise(raw: Mapping[str, Any], path: Path) -> str:
    """The format of a configuration; CheckpointError where it is none that is known."""
    for name, form in FORMATS.items():
        if form.recognises(raw):
            return name
    said = {key: raw[key] for key in ("model_type", "architectures") if key in raw}
    raise CheckpointError(
        f"{path}: a model that cannot be read here: {said or 'it says neither model_type nor architectures'}. "
        f"Formats: {', '.join(FORMATS)}; force one with --format."
    )


def describe(name: str, raw: dict[str, Any], path: Path) -> Description:
    """What a configuration of the format `name` says.

    Raises:
        CheckpointError: it is none, or of a model that this package does not have.
    """
    try:
        return FORMATS[name].describe(raw, path)
    except ValidationError as error:  # sizes that do not go together
        raise describe_errors(error, path) from error
