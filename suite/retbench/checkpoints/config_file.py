"""A configuration in JSON, read field by field into a typed object; what is wrong is named with its file."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from retbench.errors import CheckpointError

CONFIG_NAME = "config.json"


class Fields(BaseModel):
    """The fields of a public configuration that say something about the model; the many others are ignored.

    A field with one permitted value stands for what the models of this package do not have: another value is refused.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


FieldsT = TypeVar("FieldsT", bound=BaseModel)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file cannot be read, or is no JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:  # a JSONDecodeError, or bytes that are no text
        raise CheckpointError(f"{path}: is not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(raw).__name__}, expected an object.")
    return raw


def parse(kind: type[FieldsT], raw: dict[str, Any], path: Path) -> FieldsT:
    """The fields of `raw` as a `kind`.

    Raises:
        CheckpointError: fields are missing, of another type, or describe a model that this package does not have.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise describe_errors(error, path) from error


def describe_errors(error: ValidationError, path: Path) -> CheckpointError:
    """A CheckpointError that names every field that is wrong, its value, and what was expected."""
    lines = []
    for fault in error.errors(include_url=False):
        name = ".".join(str(part) for part in fault["loc"])
        found = "" if fault["type"] == "missing" or not name else f" (found {fault['input']!r})"
        lines.append(f"{name + ': ' if name else ''}{fault['msg']}{found}")
    return CheckpointError(f"{path}: not a configuration that can be read here: {'; '.join(lines)}.")
