"""SIGINT, SIGTERM and SIGHUP as messages, so that a run meets them at one place, between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(Exception):  # noqa: N818 - an outcome, not an error
    """The run was told to stop."""


@contextmanager
def catch_signals(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` for every such signal instead of ending; outside the main thread nothing is changed.

    A signal that this process was started to ignore (SIGHUP under nohup, SIGINT in the background of a
    script) stays ignored.

    Args:
        tell: Must be safe inside a signal handler (`SimpleQueue.put` is).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        tell()

    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
