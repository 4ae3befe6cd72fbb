"""What an exception inside a worker means for the cell that raised it."""

import traceback

from retbench.errors import GateError, RetbenchError, UnsupportedError
from retbench.measure.limits import is_out_of_memory
from retbench.records.record import Status


def classify(error: Exception) -> tuple[Status, str]:
    """Status and message of a cell whose measurement raised `error`."""
    if isinstance(error, UnsupportedError):
        return "unsupported", str(error)
    if isinstance(error, GateError):
        return "gate_failed", str(error)
    if isinstance(error, RetbenchError):  # its message was written for the user, and says where
        return "failed", str(error)
    if is_out_of_memory(error):
        return "oom", f"out of memory: {_first_line(error)}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return "failed", f"{type(error).__name__} at {place}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
