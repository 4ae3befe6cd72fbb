"""Depth of equivalence checks, and those on disk that hold for the models of a plan.

A model that has passed is not checked again for another experiment, or when a run continues, as long as everything
that the check depends on is the same.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retbench.planning.cells import Cell
from retbench.records.dates import started
from retbench.records.record import Gate, ModelInfo
from retbench.records.store import read_records
from retbench.running.recording import model_info
from retbench.running.resume import Identity, identity_of
from retbench.workloads.workload import is_cost

GATE_DEPTH = {"cpu": 4096, "cuda": 32768}
"""Deepest state that the equivalence check streams and compares with a whole pass, unless no cell is as deep."""

QUADRATIC_GATE_DEPTH = 4096
"""The same where a whole pass holds a score for every pair of tokens."""

_SETTINGS = ("dtype", "device", "threads", "seed", "decode_operators", "backend", "chunk_size")
"""Settings that change what is checked."""


def gates_on_disk(folder: Path, cells: Sequence[Cell], identities: Mapping[str, Identity]) -> dict[str, Gate]:
    """Return the newest check that holds for each model of a plan, by its label; nothing for one without.

    A check holds if it was passed on this device by the same code of the package and the model, with the same
    libraries, weights and settings, and is as deep as a check for these cells would be.

    Args:
        folder: Folder of the records of this machine, of all experiments.
        cells: The cells of the plan.
        identities: The identity that a new record of each cell would have, by cell_id.
    """
    passed: dict[str, Gate] = {}
    for record in sorted(read_records(folder)[0], key=started):
        if record.gate is not None and record.gate.passed:
            key = _key(record.model, record.settings, identity_of(record))
            passed[key] = record.gate.model_copy(update={"run_id": record.gate.run_id or record.run_id})
    by_label: dict[str, list[Cell]] = {}
    for cell in cells:
        by_label.setdefault(cell.under_test.label, []).append(cell)
    found = {label: passed.get(_key_of_cells(own, identities)) for label, own in by_label.items()}
    return {label: gate for label, gate in found.items() if gate and _is_deep_enough(gate, by_label[label])}


def _key_of_cells(cells: Sequence[Cell], identities: Mapping[str, Identity]) -> str:
    """Return what the check of a model depends on; where a cost is measured, the node and the GPU too."""
    cell = min(cells, key=lambda one: not is_cost(one.workload))
    settings = {**cell.settings.model_dump(), "backend": cell.backend, "chunk_size": cell.chunk_size}
    return _key(model_info(cell), settings, identities[cell.cell_id])


def _key(model: ModelInfo, settings: Mapping[str, Any], identity: Identity) -> str:
    """Return everything that a check depends on, as text."""
    weights = model.weights.model_dump(mode="json") if model.weights else None
    chosen = {name: settings.get(name) for name in _SETTINGS}
    own = {name: value for name, value in identity.items() if name != "workload_code"}
    return json.dumps([model.config, weights, chosen, own], sort_keys=True)


def _is_deep_enough(gate: Gate, cells: Sequence[Cell]) -> bool:
    """Return whether a check was as deep as one for these cells would be at most."""
    return max((check.length for check in gate.checks), default=0) >= gate_depth(cells)


def gate_depth(cells: Sequence[Cell]) -> int:
    """Return the depth, in tokens, of a check for cells of one device, if neither model nor memory limits it."""
    deepest = max(cell.point.context_len for cell in cells)
    return min(deepest, GATE_DEPTH[cells[0].settings.device.partition(":")[0]])
