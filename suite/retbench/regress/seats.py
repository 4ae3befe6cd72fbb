"""One side of a sitting: its code, where its records go, and what its workers say."""

from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from retbench.planning.plan import Plan
from retbench.records.record import Gate, Record, parse_record
from retbench.regress.items import Place
from retbench.regress.revisions import Revision
from retbench.regress.sides import place_of, value_of
from retbench.run.process import Inbox
from retbench.run.protocol import RunInfo


@dataclass
class Seat:
    """One side of a sitting.

    Attributes:
        revision: Its code.
        run: What its records say of the run.
        folder: Where its records and states lie.
        inbox: What its workers say.
        gates: By subject.
        failed: Places that cannot be measured any more, each with the reason.
    """

    revision: Revision
    run: RunInfo
    folder: Path
    inbox: Inbox = field(default_factory=SimpleQueue)
    gates: dict[str, Gate] = field(default_factory=dict)
    failed: dict[Place, str] = field(default_factory=dict)
    _records: list[Record] = field(default_factory=list)
    _num_bytes_read: int = 0

    @property
    def records_path(self) -> Path:
        """Its record file."""
        return self.folder / "records.jsonl"

    @property
    def states(self) -> Path:
        """Where its streamed states lie."""
        return self.folder / "states"

    def records(self) -> list[Record]:
        """Everything measured so far; of the file only what is new is read."""
        if self.records_path.exists():
            with open(self.records_path, "rb") as file:
                file.seek(self._num_bytes_read)
                lines = file.read()
            self._num_bytes_read += len(lines)
            # What a worker was writing when it died is no record; its cell has failed already.
            whole = (line for line in lines.splitlines() if line.rstrip().endswith(b"}"))
            self._records += map(parse_record, whole)
        return self._records

    def values(self, number: int) -> dict[Place, list[float]]:
        """What it measured in a round, visit by visit."""
        found: dict[Place, list[float]] = {}
        for record in self.records():
            if record.round == number and record.status == "ok":
                found.setdefault(place_of(record), []).append(value_of(record))
        return found


def run_info(plan: Plan, revision: Revision, run_id: str) -> RunInfo:
    """What the records of a side say of the run."""
    return RunInfo(
        run_id=run_id,
        experiment=plan.experiment.name,
        profile=plan.profile_name,
        command=plan.command,
        code_revision=revision.code,
    )
