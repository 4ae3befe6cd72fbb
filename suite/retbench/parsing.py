"""JSON and TOML from files that anybody may have written: what does not parse is a ValueError, and nothing else.

Both parsers raise RecursionError for deep nesting, and pass on integers of any size and half of a surrogate pair, which
fail later, far from the file.
"""

import json
import tomllib
from collections.abc import Callable
from functools import partial
from typing import Any

MAX_DEPTH = 64
"""Levels of nested tables and lists that are read."""


def parse_json(text: str | bytes, *, integers: Callable[[str], int | float] = int) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text.
        integers: Converts the text of an integer.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deeply, or has a number or a string that cannot be stored.
    """
    return _parse(partial(json.loads, parse_int=integers), text)


def parse_json_line(line: str | bytes) -> Any:
    """Return the value of a line of JSON Lines.

    Raises:
        ValueError: see `parse_json`. It states the column alone: the line's number is known to the caller.
    """
    try:
        return parse_json(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg.removesuffix(' at')} at column {error.colno}") from None


def integer_or_float(text: str) -> int | float:
    """Return an integer that 64 bits hold, and a larger one as a float: transformers writes 10^30 for "no limit"."""
    number = float(text)
    return int(text) if abs(number) < 2**63 else number


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        ValueError: it is not TOML, is nested too deeply, or has a number or a string that cannot be stored.
    """
    found: dict[str, Any] = _parse(tomllib.loads, text)
    return found


def _parse(load: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        value = load(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep") from None
    check_storable(value)
    return value


def check_storable(value: object) -> None:
    """Raise ValueError for values that JSON or Python can write and nothing here can store."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one)
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
            elif isinstance(one, int) and not -(2**63) <= one < 2**64:
                raise ValueError(f"an integer of {one.bit_length()} bits does not fit into 64")
            elif isinstance(one, str) and not one.isascii():
                _check_string(one)
        level, depth = below, depth + 1


def _check_string(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a string has half of a surrogate pair, which is not a character") from None
