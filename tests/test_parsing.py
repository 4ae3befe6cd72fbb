"""JSON and TOML of strangers: a value, or a ValueError that says what is wrong."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.parsing import MAX_DEPTH, integer_or_float, parse_json, parse_json_line, parse_toml

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON_VALUES)
def test_a_value_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@given(st.binary() | st.text())
def test_anything_else_is_a_value_error(text: bytes | str) -> None:
    for parse in (parse_json, lambda one: parse_toml(one if isinstance(one, str) else one.decode("latin-1"))):
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested more than"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested more than"),
        (str(2**70), "an integer of 71 bits"),
        (str(-(2**70)), "an integer of 71 bits"),
        ("9" * 5000, "limit"),
        ('{"a": ["\\ud800"]}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        (b'"\xff"', "utf-8"),
    ],
)
def test_json_that_fails_later_is_refused_at_once(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_a_line_of_json_states_its_column_and_no_line() -> None:
    with pytest.raises(ValueError, match=r"^Expecting ',' delimiter at column 8$"):
        parse_json_line('{"a":1 "b":2}')


@pytest.mark.parametrize(
    ("text", "value"),
    [("1000000000000000019884624838656", 1e30), ("-7", -7), (str(2**62), 2**62), ("9" * 5000, float("inf"))],
)
def test_an_integer_that_is_too_large_can_be_read_as_a_float(text: str, value: float) -> None:
    assert parse_json(text, integers=integer_or_float) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 100_000, "nested more than"),
        ("a = " + "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested more than"),
        (f"a = {2**70}", "an integer of 71 bits"),
        ("a = " + "9" * 5000, "limit"),
        ("a = ", "Invalid value"),
    ],
)
def test_toml_that_fails_later_is_refused_at_once(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_toml(text)
