"""Identity of measurements, and what is on disk already and need not be measured again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retbench.measure import environment
from retbench.planning.cells import Cell
from retbench.records.record import Record, Status, computing_versions, read_records
from retbench.run.recording import code_of_cell

FINAL: frozenset[Status] = frozenset({"ok", "oom"})
"""Outcomes that the same code on the same machine would only repeat. The others are tried again: a package or the data
of a task may have become available since."""


@dataclass(frozen=True)
class RecordIdentity:
    """Everything that must agree before an old record is taken for a new measurement of its cell.

    Attributes:
        machine: Name of the machine.
        code_revision: Version and hash of the source that all cells run.
        model_code: Hash of the source that only its model runs.
        workload_code: Hash of the source that only its workload runs.
        versions: Versions of Python and of every library that could change a number.
    """

    machine: str
    code_revision: str
    model_code: str
    workload_code: str
    versions: Mapping[str, str] = field(default_factory=dict)


def identity_of(record: Record) -> RecordIdentity | None:
    """Return the identity that a record states; None where it states none, as records before version 3."""
    facts = record.environment
    try:
        return RecordIdentity(
            machine=facts["machine"],
            code_revision=facts["code_revision"],
            model_code=facts["model_code"],
            workload_code=facts["workload_code"],
            versions=computing_versions(facts),
        )
    except KeyError:
        return None


def identities_here(cells: Sequence[Cell]) -> dict[str, RecordIdentity]:
    """Return the identity that a record of each cell would have if it were measured here and now, by cell_id."""
    versions = computing_versions({"versions": environment.library_versions()})
    revision = environment.code_revision()
    machine = environment.machine_name(cells[0].settings.device)
    return {
        cell.cell_id: RecordIdentity(machine, revision, **code_of_cell(cell), versions=versions)
        for cell in cells
    }


def finished_pairs(folder: Path, identities: Mapping[str, RecordIdentity]) -> dict[tuple[str, int], Status]:
    """Return the status of every (cell_id, round) in the record files of `folder` that need not be measured again.

    Lines that cannot be read (torn, or of another schema) do not count.

    Args:
        folder: Where the records of the experiment are.
        identities: The identity that a new record would have, by cell_id.
    """
    records, _ = read_records(folder)
    return {
        (record.cell_id, record.round): record.status
        for record in records
        if record.status in FINAL
        and record.cell_id in identities
        and identity_of(record) == identities[record.cell_id]
    }


def recorded_status(path: Path, cell_id: str, round_number: int) -> Status | None:
    """Return the status of the latest record of a (cell, round) in one file; None without one."""
    if not path.exists():
        return None
    records, _ = read_records(path)
    found = [record.status for record in records if (record.cell_id, record.round) == (cell_id, round_number)]
    return found[-1] if found else None
