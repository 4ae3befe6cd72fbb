"""Standard streams that may lose their reader: `retbench run latency 2>&1 | head -1` measures everything."""

import io
import os
import sys
from typing import Any, TextIO


def protect_streams() -> None:
    """Replace stdout and stderr of this process, unless a test has replaced them.

    What stdout cannot deliver because its reader has gone is dropped. stderr drops what it cannot deliver,
    as to a full disk. Characters that an encoding lacks are escaped.
    """
    if sys.stdout is sys.__stdout__:
        sys.stdout = _protected(sys.stdout, BrokenPipeError)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _protected(sys.stderr, OSError)


def has_reader() -> bool:
    """Return whether somebody still reads stdout."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return not (isinstance(raw, _Output) and raw.is_lost)


def _protected(stream: TextIO | None, tolerated: type[OSError]) -> TextIO:
    if stream is None:  # closed before the start: no file that is opened later may take its number
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    # Of an unbuffered stream the buffer is the file.
    raw = _Output(getattr(stream.buffer, "raw", stream.buffer), tolerated)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=stream.isatty()
    )


class _Output(io.RawIOBase):
    """The bytes of a stream: after its first error everything is dropped; only some errors are tolerated."""

    def __init__(self, raw: Any, tolerated: type[OSError]) -> None:
        self._raw = raw
        self._tolerated = tolerated
        self.is_lost = False

    def write(self, data: Any, /) -> int | None:
        """Write bytes; return how many were written or dropped."""
        if not self.is_lost:
            try:
                num_bytes: int | None = self._raw.write(data)
                return num_bytes
            except OSError as error:
                self.is_lost = True  # also for what is flushed at exit
                if not isinstance(error, self._tolerated):
                    raise
        return len(data)

    def writable(self) -> bool:
        """Return True, as for every output."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return bool(self._raw.isatty())
