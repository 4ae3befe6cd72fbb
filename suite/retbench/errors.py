"""The errors a user can meet, and the exit code that each one ends the command with.

    RetbenchError            1  something failed; the message says what and what to do
      ConfigError            2  the request is impossible or misspelt
      RecordError            2  a record file cannot be read
      CheckpointError        2  weights or their configuration cannot be read
      CapacityError          2  more tokens than the key-value cache was allocated for
      StorageError           1  a record or a checkpoint could not be written (disk full)
      UnsupportedError       3  the request is valid, but this machine or installation cannot do it, or not now
      NotComparableError     3  two measurements are not of the same thing
      RegressionError        1  a run has moved from those before it
      GateError              1  the execution modes of a model are not equivalent: no time may be reported for it
      DivergedError          1  a training run went wrong: its loss is not finite, or a spike

Every message states what is wrong, where, the value, and what to do.
"""

from collections.abc import Iterable, Mapping

MAX_SHOWN = 200
"""Characters of a value that a message quotes."""

INTERRUPTED = 130
"""Exit code of a command that the user interrupted."""


class RetbenchError(Exception):
    """Base of every error that is shown to the user as one message, without a traceback."""

    exit_code = 1


class ConfigError(RetbenchError):
    """The request is impossible: an unknown name, a wrong value, a contradiction."""

    exit_code = 2


class RecordError(RetbenchError):
    """A record file cannot be read by this version."""

    exit_code = 2


class CheckpointError(RetbenchError):
    """A checkpoint is damaged, does not fit its configuration, or is of a model that this version does not have."""

    exit_code = 2


class CapacityError(RetbenchError):
    """More tokens were fed than the state has room for."""

    exit_code = 2


class StorageError(RetbenchError):
    """A measurement or a checkpoint could not be stored; everything before it is intact."""


class UnsupportedError(RetbenchError):
    """The machine or the installation lacks what the request needs, or another run is using it."""

    exit_code = 3


class NotComparableError(RetbenchError):
    """Two measurements differ in what they measured or where, so that their difference means nothing."""

    exit_code = 3


class RegressionError(RetbenchError):
    """A run has moved from the runs that it should join."""


class GateError(RetbenchError):
    """Two execution modes of a model differ by more than the stated limit."""


class DivergedError(RetbenchError):
    """A training run's loss or gradients are not finite, or its loss has risen far."""


def shown(value: object) -> str:
    """Return a value as a message quotes it: on one line, without control characters, cut after 200 characters.

    Truth values are spelt as files and --set spell them.
    """
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end; an integer of more than 4,300 digits
        return f"a {type(value).__name__} too large to show"
    text = text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair cannot be printed
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text):,} characters)"


def printable(text: str) -> str:
    """Return a text with escapes in place of control characters, which would control the terminal."""
    return "".join(one if one.isprintable() or one == " " else repr(one)[1:-1] for one in text)


_NO_SYNONYMS: Mapping[str, str] = {}


def unknown_name(
    kind: str, name: str, known: Iterable[str], *, where: str = "", synonyms: Mapping[str, str] = _NO_SYNONYMS
) -> ConfigError:
    """Return a ConfigError for a name that is not among `known`, with the nearest match suggested.

    Args:
        kind: Kind of the name, e.g. "experiment".
        name: The name as given.
        known: Every accepted name.
        where: File or option that held it; leads the message when given.
        synonyms: Other words, in lower case, with the known name that each suggests.
    """
    from difflib import get_close_matches

    options = sorted(known)
    meant = synonyms.get(name.lower())
    lower = {option.lower(): option for option in options}
    near = (
        [meant] if meant in options else [lower[one] for one in get_close_matches(name.lower(), lower, n=1)]
    )
    prefix = f"{where}: " if where else ""
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"{prefix}unknown {kind} {shown(name)}.{hint} Known: {', '.join(options)}.")
