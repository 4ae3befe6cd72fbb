"""Code in processes of its own that have imported torch already: a fork takes milliseconds, and an import seconds."""

import io
import multiprocessing
import traceback
from contextlib import redirect_stdout
from multiprocessing.connection import Connection

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "retbench.measure.limits", __name__])


def run_forked(code: str) -> str:
    """Execute code in a process of its own, and return what it prints; an error of it fails the test."""
    receiver, sender = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_execute, args=(code, sender))
    process.start()
    sender.close()
    try:
        printed, problem = receiver.recv()
    except EOFError:
        process.join()
        printed, problem = "", f"the process ended with {process.exitcode}"
    process.join()
    assert not problem, problem
    return printed.strip()


def as_worker(code: str) -> str:
    """Return code for a new process that ends as a worker does: torch's own clean-up takes as long as its import.

    Nor does the garbage collector run meanwhile, as in a worker.
    """
    return f"import gc\ngc.disable()\n{code}\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"


def _execute(code: str, sender: Connection) -> None:
    printed, problem = io.StringIO(), ""
    try:
        with redirect_stdout(printed):
            exec(code, {"__name__": "__main__"})
    except Exception:
        problem = traceback.format_exc()
    sender.send((printed.getvalue(), problem))
