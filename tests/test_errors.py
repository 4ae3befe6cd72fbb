import pytest

from retbench import errors
from retbench.errors import MAX_SHOWN, ConfigError, RetbenchError, shown, unknown_name

# The exit codes are a promise to scripts: README and CONTRIBUTING state them.
EXIT_CODES = {
    "RetbenchError": 1,
    "ConfigError": 2,
    "RecordError": 2,
    "CheckpointError": 2,
    "CapacityError": 2,
    "StorageError": 1,
    "UnsupportedError": 3,
    "NotComparableError": 3,
    "RegressionError": 1,
    "GateError": 1,
    "DivergedError": 1,
}


def test_every_error_has_its_documented_exit_code() -> None:
    classes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, RetbenchError)
    }
    assert classes == EXIT_CODES


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_module_docstring_states_the_exit_code(name: str, code: int) -> None:
    lines = [line.split() for line in (errors.__doc__ or "").splitlines()]
    assert [name, str(code)] in [words[:2] for words in lines]


def test_unknown_name_suggests_the_nearest_and_lists_all() -> None:
    error = unknown_name("experiment", "latncy", ["memory", "latency"])
    assert isinstance(error, ConfigError)
    assert str(error) == "unknown experiment 'latncy'. Did you mean 'latency'? Known: latency, memory."


def test_unknown_name_without_anything_near_suggests_nothing() -> None:
    error = unknown_name("size", "huge", ["1m", "6m"], where="--size")
    assert str(error) == "--size: unknown size 'huge'. Known: 1m, 6m."


@pytest.mark.parametrize(
    "value", ["\x1b[2J", "a\nb", "\ud800", "x" * 10_000, 10**5000, ["y" * 300]], ids=type
)
def test_a_quoted_value_is_one_short_line_without_control_characters(value: object) -> None:
    text = shown(value)
    text.encode()
    assert text.isprintable()
    assert len(text) <= MAX_SHOWN + 30


def test_a_quoted_truth_value_is_spelt_as_in_a_file() -> None:
    assert [shown(value) for value in (True, False, 1, "true")] == ["true", "false", "1", "'true'"]
