"""What is on disk already and need not be measured again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from retbench.records.record import Record, Status, read_records
from retbench.records.versions import computing_versions

FINAL: frozenset[Status] = frozenset({"ok", "oom"})
"""Outcomes that the same code on the same machine would only repeat. The others are tried again: what was not supported
may be there since, a package or the data of a task."""


@dataclass(frozen=True)
class Identity:
    """What must be the same for an old record to stand for a new measurement."""

    machine: str
    code_revision: str
    versions: Mapping[str, str]
    """Of Python and of every library that could move a number."""


def identity_of(record: Record) -> Identity | None:
    """The identity that a record states; None where it states none."""
    environment = record.environment
    try:
        return Identity(environment["machine"], environment["code_revision"], computing_versions(environment))
    except KeyError:
        return None


def finished_pairs(
    folder: Path, identity: Identity, pair_ids: Mapping[str, str]
) -> dict[tuple[str, int], Status]:
    """Every (cell_id, round) in the record files of `folder` that a run need not measure again: its status.

    A record made beside other models does not count: no table would show it beside these. Lines that cannot be read
    (torn, or of another schema) count as not there.

    Args:
        folder: Where the records of the experiment lie.
        identity: What a record made here and now would state.
        pair_ids: The pair_id that it would get, by its cell_id.
    """
    records, _ = read_records(folder)
    return {
        (record.cell_id, record.round): record.status
        for record in records
        if record.status in FINAL
        and identity_of(record) == identity
        and pair_ids.get(record.cell_id) == record.pair_id
    }


def recorded_status(path: Path, cell_id: str, round_number: int) -> Status | None:
    """Status of the latest record of a (cell, round) in one file; None without one."""
    if not path.exists():
        return None
    records, _ = read_records(path)
    found = [record.status for record in records if (record.cell_id, record.round) == (cell_id, round_number)]
    return found[-1] if found else None
