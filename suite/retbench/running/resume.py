"""Identity of measurements, and what is on disk already and need not be measured again."""

import os
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retbench.measure import environment, nvml, source
from retbench.measure.devices import device_uuid
from retbench.measure.machine import cpu_quota, memory_limit_bytes, node_id
from retbench.planning.cells import Cell
from retbench.records.dates import started
from retbench.records.environment import computing_versions, conditions, excessive_load
from retbench.records.record import Point, Record, Status
from retbench.records.store import read_records
from retbench.running.recording import code_of_cell
from retbench.workloads.workload import is_cost, measures_cost

_FREE_SHARE = 0.9
"""Share of a GPU's memory that is free when a worker of this package alone has begun to use it."""

Identity = dict[str, object]
"""Everything that must agree before an old record is taken for a new measurement of its cell: the machine, the code
that all cells, the model and the workload run, and the versions of all libraries that could change a number. For a cost
also the node and the GPU, because equal ones differ: the rounds of a cell are those of one, and of one set of variables
and one CPU quota."""

_TRIALS = ("machine", "node_id", "gpu_uuid", "versions", "variables", "cpu_quota")
"""Parts of the identity of a cost that trials of products depend on, in addition to the code that tries."""


def identity_of(record: Record) -> Identity:
    """Return the identity that a record states; records before version 3 lack parts of it, which are None here."""
    return _identity(record.environment, of_cost=measures_cost(record))


def identities_here(cells: Sequence[Cell]) -> dict[str, Identity]:
    """Return the identity that a record of each cell would have if it were measured here and now, by cell_id."""
    device, threads = cells[0].settings.device, cells[0].settings.threads
    variables = os.environ | environment.worker_environment(threads, device)
    facts = {
        "machine": environment.machine_name(device),
        "node_id": node_id(),
        "gpu_uuid": None if device == "cpu" else nvml.board_uuid(device_uuid(device)),
        "code_revision": environment.code_revision(),
        "versions": environment.library_versions(),
        "variables": environment.computing_variables(variables),
        **({"cpu_quota": quota} if (quota := cpu_quota()) is not None else {}),
    }
    return {
        cell.cell_id: _identity(facts | code_of_cell(cell), of_cost=is_cost(cell.workload)) for cell in cells
    }


def _identity(facts: Mapping[str, Any], *, of_cost: bool) -> Identity:
    names: tuple[str, ...] = ("machine", "code_revision", "model_code", "workload_code")
    found: Identity = {"versions": computing_versions(facts)}
    if of_cost:
        names += ("node_id", "gpu_uuid", "cpu_quota")
        found["variables"] = conditions(facts)["variables"]
    return found | {name: facts.get(name) for name in names}


def finished_pairs(
    folder: Path,
    cells: Iterable[Cell],
    identities: Mapping[str, Identity],
    runs: Container[str] | None = None,
) -> dict[tuple[str, int], Status]:
    """Return the status of every (cell_id, round) in the record files of `folder` that need not be measured again.

    Lines that cannot be read (torn, or of another schema) do not count. Nor do costs at a point of a round that was
    measured of some models only, because models are compared in the rounds of one session: after an interruption
    between two models it is measured again of all. A model that was never measured shows an interruption in the last
    round that was begun only, for it may be new.

    Args:
        folder: Folder of the records of the experiment.
        cells: Those of the plan.
        identities: The identity that a new record would have, by cell_id.
        runs: Ids of the runs whose records count; all when None.
    """
    records = [
        record
        for record in read_records(folder)[0]
        if record.cell_id in identities
        and identity_of(record) == identities[record.cell_id]
        and (runs is None or record.run_id in runs)
    ]
    done = {(record.cell_id, record.round): record.status for record in records if _is_final(record)}
    tried = {(record.cell_id, record.round) for record in records}
    known, last = {cell_id for cell_id, _ in tried}, max((number for _, number in tried), default=0)
    points: dict[tuple[str, Point], list[str]] = {}
    for cell in cells:
        if is_cost(cell.workload):
            points.setdefault((cell.workload, cell.point), []).append(cell.cell_id)
    for cell_ids in points.values():
        for number in range(last + 1):
            left = [one for one in cell_ids if (one, number) not in tried]
            if any(one in known or number == last for one in left):
                for one in cell_ids:
                    done.pop((one, number), None)
    return done


def trials_code_here() -> str:
    """Return the hash of the code that tries products."""
    return source.closure_hash("retbench.measure.products")


def products_on_disk(folder: Path, identities: Mapping[str, Identity], trials_code: str) -> dict[str, int]:
    """Return the outcomes of `measure.products` that hold for a plan, by name: the latest of each.

    Trials of methods that are about equally fast come out now one way, now the other, and times by different methods
    are not comparable. So an outcome holds for every experiment on a node, with the same libraries, variables and CPU
    quota, until the code that tries is another. An outcome from a busy machine is less reliable: it holds only for
    further rounds of the same cells.

    Args:
        folder: Folder of the records of this machine, of all experiments.
        identities: The identity that a new record of each cell would have, by cell_id.
        trials_code: The hash that `trials_code_here` returns.
    """
    of_cost = next((identity for identity in identities.values() if "node_id" in identity), None)
    here = of_cost and {name: of_cost[name] for name in _TRIALS}
    found: dict[str, int] = {}
    own: dict[str, int] = {}
    for record in sorted(read_records(folder)[0], key=started):
        stated, identity = record.environment.get("products"), identity_of(record)
        if not isinstance(stated, dict):  # of a worker that ended, for which the runner wrote the record
            continue
        outcomes = {name: value for name, value in stated.items() if isinstance(value, int)}
        if measures_cost(record) and identity == identities.get(record.cell_id):
            own |= outcomes
        elif (
            {name: identity.get(name) for name in _TRIALS} == here
            and record.environment.get("trials_code") == trials_code
            and excessive_load(record.environment) is None
        ):
            found |= outcomes
    return found | own


def _is_final(record: Record) -> bool:
    """Return whether the same code on the same machine would only repeat the outcome of a record.

    Out of memory is repeated where a process may not have more memory than the record's had, unless other processes
    held memory of its GPU. Failures are tried again: a package or the data of a task may have become available since.
    """
    if record.status != "oom":
        return record.status == "ok"
    match record.environment:
        case {"gpu": {"free_bytes": int(free), "memory_bytes": int(total)}} if free < _FREE_SHARE * total:
            return False
        case {"memory_limit_bytes": int(limit)}:
            return memory_limit_bytes() <= limit
    return False
