"""Other programs, each run to its end or until the user ends this one."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from retbench.run.locks import Interrupted

_POLL_S = 0.1


class Stop:
    """A note that the user ended this program, for what looks between two steps.

    Attributes:
        told: Whether it is written.
    """

    def __init__(self) -> None:
        self.told = False

    def tell(self) -> None:
        """Write it; safe inside a signal handler."""
        self.told = True

    def heed(self) -> None:
        """Interrupted where it is written."""
        if self.told:
            raise Interrupted


def run_program(
    words: Sequence[str], variables: Mapping[str, str], stop: Stop
) -> subprocess.CompletedProcess[str]:
    """Run a program and keep what it prints.

    It has a session of its own: what the user types ends it by way of the note alone.

    Args:
        words: Program and arguments.
        variables: Its environment.
        stop: Ends it, and whatever it has started.

    Raises:
        Interrupted: the user ended it.
    """
    with subprocess.Popen(
        words,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while True:
            try:
                stdout, stderr = process.communicate(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                if stop.told:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise Interrupted from None
            else:
                stop.heed()
                return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)
