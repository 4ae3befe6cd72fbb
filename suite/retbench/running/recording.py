"""Records of cells: what was measured or why it was not, with the facts of the cell, the run and the process."""

from dataclasses import dataclass, field
from typing import Any

from retbench.architectures import costs
from retbench.planning.cells import Cell
from retbench.records.record import Ceilings, Documents, Gate, ModelInfo, Record, Status
from retbench.running.protocol import RunInfo
from retbench.workloads.workload import Measurement, code_of_parts


@dataclass(frozen=True)
class Outcome:
    """Result of measuring one cell in one round."""

    status: Status
    started_at: str
    error: str | None = None
    found: Measurement = field(default_factory=lambda: Measurement({}))
    documents: Documents | None = None
    device_facts: dict[str, Any] = field(default_factory=dict)
    """State of the device during the measurement; goes into the environment."""


@dataclass(frozen=True)
class Surroundings:
    """Parts that all records of one worker share."""

    environment: dict[str, Any]
    gate: Gate | None = None
    ceilings: Ceilings | None = None


def without_trial(name: str, status: Status, reason: str) -> tuple[Status, str]:
    """Return status and reason of cells of a model that were not tried, of which running out of memory says nothing."""
    return (
        ("unsupported", f"before any cell of '{name}' was tried, {reason}")
        if status == "oom"
        else (status, reason)
    )


def make_record(
    run: RunInfo, cell: Cell, round_number: int, outcome: Outcome, surroundings: Surroundings
) -> Record:
    """Make the record of one cell in one round."""
    return Record(
        run_id=run.run_id,
        experiment=run.experiment,
        profile=run.profile,
        cell_id=cell.cell_id,
        round=round_number,
        num_rounds=run.num_rounds.get(cell.cell_id),
        started_at=outcome.started_at,
        status=outcome.status,
        error=outcome.error,
        model=model_info(cell),
        workload=cell.workload,
        point=cell.point,
        settings={
            **cell.settings.model_dump(),
            "backend": cell.backend,
            "chunk_size": cell.chunk_size,
            **(cell.evaluation.model_dump() if cell.evaluation else {}),
        },
        backend=outcome.found.backend,
        environment={**surroundings.environment, **code_of_cell(cell), **outcome.device_facts},
        ceilings=outcome.found.ceilings or surroundings.ceilings,
        gate=surroundings.gate,
        metrics=outcome.found.metrics,
        series=outcome.found.series,
        documents=outcome.documents,
        absent=outcome.found.absent,
        command=run.command,
    )


def model_info(cell: Cell) -> ModelInfo:
    """Describe the model of a cell as records do."""
    return ModelInfo(
        name=cell.model_name,
        architecture=cell.model.architecture,
        variant=cell.model.variant,
        size=cell.under_test.size,
        num_params=costs.num_params(cell.model),
        num_params_nonembedding=costs.num_params_nonembedding(cell.model),
        config=cell.model.model_dump(mode="json"),
        weights=cell.under_test.weights.info if cell.under_test.weights else None,
    )


def code_of_cell(cell: Cell) -> dict[str, str]:
    """Return the hashes of the source that only the model, and only the workload, of a cell runs."""
    return code_of_parts(cell.model, cell.workload)
