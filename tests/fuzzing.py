"""Files that anybody may have written: valid ones with mutations, and bytes that are none."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench.errors import RetbenchError

EXAMPLES = pytest.mark.parametrize("examples", [20, pytest.param(10_000, marks=pytest.mark.slow)])
"""For tests that call `fuzz`: a few examples, or as many as the long run takes."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, -(2**63), 2**64, 2**70, 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "..", "../../x", "/etc/passwd", "a" * 300, "\x1b[31m", "\ud800", "bytes", "NaN"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NOT_JSON = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"[" * 100_000, b'{"a":' * 5000, b"1" + b"0" * 5000, b"\xff", b"NaN"]),
)


@contextmanager
def read_or_refused() -> Iterator[None]:
    """Fail where the block ends with another error than the project's own, or with one that quotes too much."""
    try:
        yield
    except RetbenchError as error:
        if len(str(error)) > 3000:
            pytest.fail(f"a message of {len(str(error)):,} characters")


def fuzz(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int) -> None:
    """Call `check` with examples of a strategy."""
    settings(max_examples=examples, deadline=None)(given(strategy)(check))()


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """Draw a JSON value with one to three changes: a part replaced or removed, or a part added."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = None, None
        node = changed
        while isinstance(node, dict | list) and node and (holder is None or draw(st.booleans())):
            keys = sorted(node) if isinstance(node, dict) else range(len(node))
            holder, key = node, draw(st.sampled_from(list(keys)))
            node = node[key]
        if holder is None:
            return draw(VALUES)
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                holder[key] = draw(VALUES)
            case "remove":
                del holder[key]
            case _ if isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = draw(VALUES)
            case _:
                holder.append(draw(VALUES))
    return changed


def texts(document: Any) -> st.SearchStrategy[bytes]:
    """Files that are almost the JSON of a document, or none at all."""
    return st.one_of(mutated(document).map(lambda value: json.dumps(value).encode()), NOT_JSON)
