"""The process that measures: `python -m retbench.run.worker`, started by the runner with one job on its stdin.

It builds the job's model once, does the task, and writes each record itself the moment it is measured. Its
stdout carries the protocol and nothing else: whatever a library prints there goes to stderr. Not a command
for people.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import BinaryIO

from retbench.errors import RetbenchError
from retbench.run import lifeline
from retbench.run.protocol import Ended, Failed, Job, Message, Visit, encode


def main() -> None:
    """Do the job on stdin; never returns."""
    gc.disable()  # while torch is imported, a tenth of which it would take; the tasks have it on again
    lifeline.ask_to_die_with_parent()
    pipe = _claim_stdout()
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(1)  # the runner died before it could say what to do
    job = Job.model_validate_json(line)
    lines = lifeline.watch_parent(job.parent_pid)
    lifeline.offer_as_oom_victim()
    try:
        _work(job, lines, _teller(pipe))
    except BrokenPipeError:
        os._exit(1)  # the runner is gone
    sys.stderr.flush()
    os._exit(0)  # nothing is left to tidy up, and torch would take its time about it


def _work(job: Job, lines: "SimpleQueue[bytes]", tell: Callable[[Message], None]) -> None:
    """Do the task; an error that is meant for the user goes to the runner, which shows it."""
    from retbench.run.tasks import do_task

    try:
        do_task(job, tell, _visits(lines))
        tell(Ended())
    except RetbenchError as error:
        tell(Failed(kind=type(error).__name__, message=str(error)))


def _visits(lines: "SimpleQueue[bytes]") -> Iterator[Visit]:
    """What the runner asks for, as it asks; never ends, for the end of stdin ends the process."""
    while True:
        yield Visit.model_validate_json(lines.get())


def _claim_stdout() -> BinaryIO:
    """The pipe to the runner, for the protocol alone; what this process prints goes to stderr from now on."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def _teller(pipe: BinaryIO) -> Callable[[Message], None]:
    """A function that sends a message at once."""

    def tell(message: Message) -> None:
        pipe.write(encode(message))
        pipe.flush()

    return tell


if __name__ == "__main__":
    main()
