"""The base of every typed object that is read from a file or sent between processes, and its faults as sentences."""

from collections.abc import Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """Immutable; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def described_by(cls) -> type[BaseModel]:
        """Return the class whose fields a table of this class may have; a table open to plugins has another one."""
        return cls


_OPTIONS = {"device": "--device"}
"""What is no field of a file, by the option that sets it."""
Loc = tuple[int | str, ...]


def explain(error: ValidationError, model: type[BaseModel], where: str, known: Sequence[str] = ()) -> str:
    """A pydantic error as one sentence a fault: place, what was wrong, the value, the nearest known name.

    Args:
        error: Of validating a `model`.
        model: The outermost table.
        where: Leads each sentence: the file, and what else the values come from.
        known: Names of tables that are whole, to tell the user of beside one that says too little.
    """
    faults = error.errors()
    lines = [
        f"{where}: {_sentence(fault, model, known)}"
        for fault in faults
        # A list whose entries are refused counts as empty.
        if not (fault["type"] == "too_short" and any(_is_inside(one["loc"], fault["loc"]) for one in faults))
    ]
    return "\n".join(dict.fromkeys(lines))


def _is_inside(loc: Loc, outer: Loc) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _sentence(fault: Any, model: type[BaseModel], known: Sequence[str]) -> str:
    """One fault: place, what was wrong, the value, what to do."""
    place, _ = _find(model, fault["loc"])
    name, value = ".".join(place), fault["input"]
    reason = fault["msg"].removeprefix("Value error, ").removesuffix(".")
    match fault["type"]:
        case "extra_forbidden":
            return _unknown_field(fault["loc"], model)
        case "missing":
            return f"the field '{name}' is missing. Add it."
        case "union_tag_not_found":
            others = f" Those that have it: {', '.join(known)}." if known else ""
            return f"[{name}] lacks the field {fault['ctx']['discriminator']}. Add it, or check the name.{others}"
        case "tuple_type":
            return f"'{name}' is {value!r}, and takes a list, e.g. {[value]!r}."
        case "value_error" | "union_tag_invalid" if isinstance(value, dict):
            return f"[{name or 'top level'}]: {reason}."  # which names what is wrong in the table
    return f"'{name}' is {value!r}: {reason}."


def _unknown_field(loc: Loc, model: type[BaseModel]) -> str:
    """A field that its table does not have, with the nearest that it has."""
    field = str(loc[-1])
    place, table = _find(model, loc[:-1])
    near = get_close_matches(field, table.model_fields if table else (), n=1)
    hint = f"Did you mean '{near[0]}'?" if near else "Remove it, or move it to its table."
    if not near and field in _OPTIONS:
        hint = f"It is set by the option {_OPTIONS[field]}."
    return f"[{'.'.join(place) or 'top level'}] has no field '{field}'. {hint}"


class _Found(NamedTuple):
    """A place in a file as its reader knows it, and the table there; None where there is none."""

    place: list[str]
    table: type[BaseModel] | None


def _find(model: type[BaseModel], loc: Loc) -> _Found:
    """Follow a location of pydantic, in which a table or a value that may be of several types has its type's name."""
    node: Any = model
    place = []
    for part in loc:
        if _is_table(node):
            field = _described_by(node).model_fields.get(str(part))
            node = _bare(field.annotation) if field else None
        elif get_origin(node) in {dict, tuple, list}:
            node = _bare(get_args(node)[1 if get_origin(node) is dict else 0])
        else:
            node = next((one for one in get_args(node) if _is_table(one) and part in _tags(one)), None)
            continue
        place.append(str(part))
    return _Found(place, _described_by(node) if _is_table(node) else None)


def _described_by(table: type[BaseModel]) -> type[BaseModel]:
    return table.described_by() if issubclass(table, Strict) else table


def _is_table(node: Any) -> bool:
    return isinstance(node, type) and issubclass(node, BaseModel)


def _bare(annotation: Any) -> Any:
    """An annotation without what is noted beside it, and without None."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    rest = [one for one in get_args(annotation) if one is not NoneType]
    return _bare(rest[0]) if len(rest) == 1 and NoneType in get_args(annotation) else annotation


def _tags(table: type[BaseModel]) -> set[str]:
    """Every name that one of the fields of a table is restricted to, which tells it from others."""
    return {
        one
        for field in table.model_fields.values()
        for one in get_args(field.annotation)
        if isinstance(one, str)
    }
