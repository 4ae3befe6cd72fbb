"""The files of a run that are not results: its streamed states, and what a killed run leaves behind.

<out>/<machine>/<experiment>/.run-<run_id>@<node>/   the states, and a lock that the kernel releases when the run ends
<out>/<machine>/<experiment>/.fresh-<plan>           the runs of a command with --fresh that has not measured everything

Costs that other nodes and GPUs measure do not count here, so a command that measures some has a `.fresh-` file per node
and GPU.

Each run has its own folder, since two runs may share `--out` without sharing the locks of a machine. Equal nodes of a
cluster share the folder too, and not every shared disk shows a node the locks of another: a run removes what ended runs
of this node left, and leaves what belongs to other nodes.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from retbench.files import DRAFT, storing, write_atomic
from retbench.measure.machine import node_id
from retbench.planning.plan import Plan
from retbench.records.store import read_records
from retbench.running.resume import identities_here

_PREFIX, _LOCK, _STATES = ".run-", "lock", "[!.]*.safetensors"


@contextmanager
def scratch_folder(folder: Path, run_id: str) -> Iterator[Path]:
    """Yield the folder for a run's states, with the states of ended runs in it; remove it at the end.

    If the block raises, the states stay for the next run.

    Raises:
        StorageError: the folder cannot be made.
    """
    own = folder / f"{_PREFIX}{run_id}@{node_id()}"
    with storing(own):
        lock = _take_lock(own)
    finished = False
    try:
        remove_leftovers(folder, heir=own)
        yield own
        finished = True
    finally:
        _remove_unrecorded(folder, run_id)
        if finished or not any(own.glob(_STATES)):
            shutil.rmtree(own, ignore_errors=True)
        lock.release()


def _take_lock(own: Path) -> FileLock:
    """Make a run's folder and lock it; once more if another run took it for that of an ended run."""
    while True:
        own.mkdir(parents=True, exist_ok=True)
        lock = FileLock(own / _LOCK)
        lock.acquire()
        if (own / _LOCK).exists():
            return lock
        lock.release()


def remove_leftovers(folder: Path, heir: Path | None = None) -> None:
    """Remove what ended runs of this node left in a folder.

    Their states go to `heir`, the folder of a run that may need them.
    """
    drafts = [*folder.glob(f"{DRAFT}*")]  # before the locks are tried: a run that begins later may write more
    live: list[str] = []
    for scratch in folder.glob(f"{_PREFIX}*"):
        run_id, _, node = scratch.name.removeprefix(_PREFIX).partition("@")
        if scratch == heir or node not in ("", node_id()) or not _remove_ended(scratch, run_id, heir):
            live.append(run_id)
    for draft in drafts:
        if not draft.name.removeprefix(DRAFT).startswith(tuple(live)):
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def _remove_ended(scratch: Path, run_id: str, heir: Path | None) -> bool:
    """Remove the scratch folder of a run, and move its states to `heir`; return False if the run may be alive.

    A link is left as it is.
    """
    try:
        if scratch.is_symlink():
            return True
        with FileLock(scratch / _LOCK, timeout=0):
            if heir is not None:
                for state in scratch.glob(_STATES):
                    state.replace(heir / state.name)
            _remove_unrecorded(scratch.parent, run_id)
            shutil.rmtree(scratch)
    except (Timeout, OSError):  # that run is alive, or the folder is another user's
        return False
    return True


def _remove_unrecorded(folder: Path, run_id: str) -> None:
    """Remove drafts of a run that has ended, and results of documents that none of its records names."""
    documents = [*folder.glob(f"{escape(run_id)}-*.documents.jsonl.gz")]
    recorded = set()
    if documents:
        records, _ = read_records(folder / f"{run_id}.jsonl")
        recorded = {record.documents.file for record in records if record.documents}
    for path in (
        *folder.glob(f"{DRAFT}{escape(run_id)}*"),
        *(one for one in documents if one.name not in recorded),
    ):
        path.unlink(missing_ok=True)


class FreshRuns:
    """The runs that count as one command with `--fresh`: an interrupted one, and those that continue it.

    Args:
        folder: Folder of the records.
        plan: The plan of the command.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        places = {(one.get("node_id"), one.get("gpu_uuid")) for one in identities_here(plan.cells).values()}
        text = "".join([*sorted(cell.cell_id for cell in plan.cells), *sorted(map(str, places))])
        self._path = folder / f".fresh-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def read(self) -> frozenset[str]:
        """Return the ids of the runs so far."""
        if not self._path.is_file():
            return frozenset()
        return frozenset(self._path.read_text(encoding="utf-8", errors="replace").split())

    def add(self, run_id: str) -> None:
        """Note that another run begins."""
        write_atomic(self._path, "\n".join(sorted(self.read() | {run_id})).encode())

    def end(self) -> None:
        """Note that everything was measured: the next command with `--fresh` begins anew."""
        if self._path.exists():  # on a read-only disk removing nothing is an error too
            self._path.unlink()
