"""The errors a user can meet, and the exit code each one ends the command with.

    RetbenchError            1  something failed; the message says what and what to do
      ConfigError            2  the request is impossible or misspelt
      RecordError            2  a record file cannot be read as what it claims to be
      CheckpointError        2  weights or their configuration cannot be read as what they claim to be
      CapacityError          2  more tokens than the key-value cache was allocated for
      StorageError           1  a record or a checkpoint could not be written (disk full)
      UnsupportedError       3  asked for rightly, but this machine or installation cannot do it
      NotComparableError     3  two measurements are not of the same thing
      RegressionError        1  a run has moved against those before it
      GateError              1  the forms of a model disagree: no time may be reported for it
      DivergedError          1  a training run went wrong: its loss is not finite, or a spike

Every message names what was wrong, where, the value, and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class RetbenchError(Exception):
    """Base of every error that is shown to the user as one message, without a traceback."""

    exit_code = 1


class ConfigError(RetbenchError):
    """The request is impossible: an unknown name, a wrong value, a contradiction."""

    exit_code = 2


class RecordError(RetbenchError):
    """A record file holds something this version cannot read."""

    exit_code = 2


class CheckpointError(RetbenchError):
    """A checkpoint is damaged, does not belong to its configuration, or is a model this version does not have."""

    exit_code = 2


class CapacityError(RetbenchError):
    """More tokens were fed than the state has room for."""

    exit_code = 2


class StorageError(RetbenchError):
    """A measurement or a checkpoint could not be stored; everything before it is intact."""


class UnsupportedError(RetbenchError):
    """The machine or the installation lacks what the request needs."""

    exit_code = 3


class NotComparableError(RetbenchError):
    """Two measurements differ in what they measured or where, so that their difference means nothing."""

    exit_code = 3


class RegressionError(RetbenchError):
    """A run has moved against those that it is to join."""


class GateError(RetbenchError):
    """Two forms of one model disagree by more than the stated limit."""


class DivergedError(RetbenchError):
    """A training run's loss or gradients are not finite, or its loss is far above what it was."""


def unknown_name(kind: str, name: str, known: Iterable[str], *, where: str = "") -> ConfigError:
    """A ConfigError for a name that is not among `known`, with the nearest match suggested.

    Args:
        kind: What the name should have been, e.g. "experiment".
        name: The name as given.
        known: Every accepted name.
        where: File or option that held it; leads the message when given.
    """
    options = sorted(known)
    near = get_close_matches(name, options, n=1)
    prefix = f"{where}: " if where else ""
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"{prefix}unknown {kind} '{name}'.{hint} Known: {', '.join(options)}.")
