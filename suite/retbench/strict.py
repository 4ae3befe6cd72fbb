"""Base class of objects that are read from a file or sent between processes, and messages about invalid ones."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError

from retbench.errors import shown

MAX_FAULTS, MAX_REASON = 20, 1000
"""Faults of a file that a message lists, and characters of a reason, which may quote the file."""

_NAME = "[A-Za-z0-9_][A-Za-z0-9._+-]*"
NAME_RULE = "Use at most 100 letters, digits, '.', '_', '+' and '-', and begin with a letter, a digit or '_'."

JSON_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
"""Dialect of the schemas that are written."""

Name = Annotated[str, StringConstraints(pattern=f"^{_NAME}$", max_length=100)]
"""A name that becomes part of a path, of an option, and of a heading."""

NamePair = Annotated[str, StringConstraints(pattern=f"^{_NAME}/{_NAME}$", max_length=200)]
"""Two names, such as EXPERIMENT/PROFILE."""


class Strict(BaseModel):
    """A model that is immutable and has no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, fields: Any) -> Any:
        """Refuse true and false where a number is meant: pydantic takes them as 1 and 0."""
        faults: list[InitErrorDetails] = []
        for name, value in fields.items() if isinstance(fields, dict) else ():
            field = cls.model_fields.get(name)
            values = value if isinstance(value, list | tuple) else (value,)
            if field is not None and any(isinstance(one, bool) for one in values):
                kinds = _kinds(field.annotation)
                if bool not in kinds and kinds & {int, float}:
                    fault = PydanticCustomError("truth", "give a number")
                    faults.append(InitErrorDetails(type=fault, loc=(name,), input=value))
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return fields

    @classmethod
    def described_by(cls) -> type[BaseModel]:
        """Return the class whose fields a table of this class may have; a table open to plugins has another one."""
        return cls


_GIVE, _EITHER = "give ", "either"
"""Beginning of a reason that says which values may be given; type of the faults of a field of several types."""
_OPTIONS = {"device": "--device"}
"""Names that are no fields of a file, with the option that sets each."""
Loc = tuple[int | str, ...]


def explain(
    error: ValidationError,
    model: type[BaseModel],
    where: str,
    known: Sequence[str] = (),
    copies: str | None = None,
) -> str:
    """Return a pydantic error as one sentence per fault: place, fault, value, nearest known name.

    Args:
        error: Raised by the validation of a `model`.
        model: The outermost table.
        where: Leads each sentence: the file, and other origins of the values.
        known: Names of complete tables, to suggest next to an incomplete one.
        copies: Pattern of the beginning of places that were completed from others: a fault there is left out if the
            other place, which lacks that beginning, has the same one.
    """
    faults = _joined(error.errors(), model)
    lines = [
        f"{where}: {_sentence(fault, model, known)}"
        for fault in faults
        # pydantic counts a list whose entries are invalid as empty.
        if not (fault["type"] == "too_short" and any(_is_inside(one["loc"], fault["loc"]) for one in faults))
    ]
    lines = list(dict.fromkeys(lines))
    if copies is not None:
        origins = {line: re.sub(copies, "", line) for line in lines}
        lines = [line for line, origin in origins.items() if origin == line or origin not in origins]
    more = [f"{where}: {len(lines) - MAX_FAULTS} more faults."] if len(lines) > MAX_FAULTS else []
    return "\n".join(lines[:MAX_FAULTS] + more)


def _joined(faults: Sequence[Any], model: type[BaseModel]) -> list[Any]:
    """Return the faults with those of one value as one: a field of several types has one for each of its types."""
    found: dict[tuple[str, str, str], Any] = {}
    for fault in faults:
        reason = reason_of(fault)
        place, value = _join(_find(model, fault["loc"]).place), shown(fault["input"])
        key = (place, value, "" if reason.startswith(_GIVE) else reason)
        earlier = found.setdefault(key, fault)
        if earlier is not fault and reason != reason_of(earlier):
            either = f"{reason_of(earlier)} or {reason.removeprefix(_GIVE)}"
            found[key] = {**earlier, "type": _EITHER, "msg": either}
    return list(found.values())


def _is_inside(loc: Loc, outer: Loc) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _sentence(fault: Any, model: type[BaseModel], known: Sequence[str]) -> str:
    """Return one fault: place, fault, value, remedy."""
    place, _ = _find(model, tuple(part for part in fault["loc"] if part != "[key]"))
    name, value = _join(place), fault["input"]
    reason = reason_of(fault)
    match fault["type"]:
        case "extra_forbidden":
            return _unknown_field(fault["loc"], model)
        case "missing":
            return f"the field '{name}' is missing. Add it."
        case "union_tag_not_found":
            others = f" Those that have it: {', '.join(known)[:MAX_REASON]}." if known else ""
            return f"[{name}] lacks the field {fault['ctx']['discriminator']}. Add it, or check the name.{others}"
        case "string_pattern_mismatch" | "string_too_long":
            return f"'{name}' is {shown(value)}, and becomes part of a path. {NAME_RULE}"
        case "tuple_type":
            return f"'{name}' is {shown(value)}, and takes a list, e.g. [{shown(value)}]."
        case "value_error" | "union_tag_invalid" if isinstance(value, dict):
            return f"[{name or 'top level'}]: {reason}."  # the reason names the field
    return f"'{name}' is {shown(value)}: {reason}."


_REASONS = {
    "greater_than_equal": "give {ge} or more",
    "greater_than": "give more than {gt}",
    "less_than_equal": "give at most {le}",
    "less_than": "give less than {lt}",
    "finite_number": "give a finite number",
    "literal_error": "give {expected}",
    "too_long": "give at most {max_length}",
    "too_short": "give a list of at least {min_length}",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "give a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "give a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "give true or false"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "give a table"),
    "string_type": "give a text in quotes",
    "none_required": "leave it out",
    "extra_forbidden": "there is no such field",
    "union_tag_invalid": "{discriminator} is {tag!r}; known are {expected_tags}",
}
"""Reasons by pydantic's type of a fault, with names of its context."""


def reason_of(fault: Any) -> str:
    """Return the reason of one fault of pydantic, in the words of this package and without a full stop."""
    known = _REASONS.get(fault["type"])
    text = known.format_map(fault.get("ctx", {})) if known else fault["msg"]
    text = text.removeprefix("Value error, ").replace("Input should", "it should").replace("items", "entries")
    return text.removesuffix(".")[:MAX_REASON]


def _unknown_field(loc: Loc, model: type[BaseModel]) -> str:
    """Return the sentence about an unknown field, with the nearest known one."""
    field = _join([str(loc[-1])])
    place, table = _find(model, loc[:-1])
    near = get_close_matches(field, table.model_fields if table else (), n=1)
    hint = f"Did you mean '{near[0]}'?" if near else "Remove it, or move it to its table."
    if table and table.model_fields and not near:
        hint = f"Its fields are {', '.join(table.model_fields)}. {hint}"
    if not near and field in _OPTIONS:
        hint = f"It is set by the option {_OPTIONS[field]}."
    return f"[{_join(place) or 'top level'}] has no field '{field}'. {hint}"


def _join(place: Sequence[str]) -> str:
    """Return a place in a file with dots, as messages quote it."""
    return shown(".".join(place)).strip("'\"")


class _Location(NamedTuple):
    """A place in a file as its reader sees it, and the table there, if any."""

    place: list[str]
    table: type[BaseModel] | None


def _find(model: type[BaseModel], loc: Loc) -> _Location:
    """Follow a location of pydantic, which contains the tag of each table in a union."""
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
    return _Location(place, _described_by(node) if _is_table(node) else None)


def _described_by(table: type[BaseModel]) -> type[BaseModel]:
    return table.described_by() if issubclass(table, Strict) else table


def _is_table(node: Any) -> bool:
    return isinstance(node, type) and issubclass(node, BaseModel)


def _bare(annotation: Any) -> Any:
    """Return an annotation without its metadata and without None."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    rest = [one for one in get_args(annotation) if one is not NoneType]
    return _bare(rest[0]) if len(rest) == 1 and NoneType in get_args(annotation) else annotation


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation consists of."""
    inner = getattr(annotation, "__value__", None)  # of a named type
    parts = get_args(annotation) if inner is None else (inner,)
    return {annotation} if not parts else set().union(*map(_kinds, parts))


def _tags(table: type[BaseModel]) -> set[str]:
    """Return every string that a field of a table is restricted to, by which a union distinguishes it."""
    return {
        one
        for field in table.model_fields.values()
        for one in get_args(field.annotation)
        if isinstance(one, str)
    }


class WithoutTitles(GenerateJsonSchema):
    """Writes a schema in which no field has a title, which would repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False."""
        return False
