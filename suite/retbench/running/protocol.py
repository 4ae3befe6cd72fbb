"""Messages between runner and worker: a job to the worker's stdin, messages back, each one line of JSON.

The runner keeps the worker's stdin open for as long as it lives; its end makes the worker exit.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from retbench import errors
from retbench.errors import RetbenchError
from retbench.measure.source import FoundHashes
from retbench.planning.cells import Cell
from retbench.records.record import Ceilings, Gate, Status
from retbench.strict import Strict

if TYPE_CHECKING:  # a worker needs no plan
    from retbench.planning.plan import Plan

Task = Literal["prepare", "measure", "serve", "ceilings"]

VERSION = 7
"""Version of these messages: one runner cannot measure two revisions with different versions in turn."""

CELL_MARK = b"retbench: the next cell"
"""Line that a worker writes to its stderr before each `Started`: output before it does not concern the cell.

`Started` itself comes through another pipe, and may arrive after the last output of a cell that ends at once.
"""


class RunInfo(Strict):
    """The fields that every record of a run states about the run."""

    run_id: str
    experiment: str
    profile: str
    command: str
    code_revision: str
    """Code revision of the runner; a worker that finds another one does not measure the same thing."""
    codes: dict[str, dict[str, str]] = Field(default_factory=dict)
    """The runner's hashes of the code of model and workload, by cell_id; see `recording.code_of_cell`."""
    num_rounds: dict[str, int] = Field(default_factory=dict)
    """Rounds in which the run is to measure each cell, by cell_id; empty where no number is fixed."""
    trials_code: str | None = None
    """The hash of the code that tries products. Other runs use its outcomes if their hash is the same."""
    source: FoundHashes | None = None
    """The hashes that the runner has found, which a worker of the same source need not find again."""

    @classmethod
    def of(cls, plan: "Plan", run_id: str, code_revision: str) -> "RunInfo":
        """Return the fields of a run that measures a plan, without hashes."""
        return cls(
            run_id=run_id,
            experiment=plan.experiment.name,
            profile=plan.profile_name,
            command=plan.command,
            code_revision=code_revision,
        )


class Job(Strict):
    """A worker's task, for one model.

    prepare: run the equivalence check, and stream the states that decode cells start from into `states_dir`.
    measure: measure the cells in the order given, appending each record to `records_path`.
    serve: measure one cell per request, so that two workers can take turns.
    ceilings: for an estimate, refuse the cells whose model cannot run here, and measure the device's ceilings.
    """

    task: Task
    run: RunInfo
    cells: tuple[Cell, ...] = Field(min_length=1)
    round: int = 0
    gate: Gate | None = None
    """Result of an earlier worker's equivalence check, or of an earlier run's; goes into every record.

    Without one, a worker that prepares or measures runs the check first.
    """
    records_path: Path
    states_dir: Path
    data_dir: Path | None = None
    """Folder of local data."""
    products: dict[str, int] = Field(default_factory=dict)
    """Outcomes of `measure.products` that earlier workers of the run have found, by name. The worker finds the others.

    Which of two near equals is the faster is chance, and models that are compared must be multiplied alike.
    """
    ceilings: Ceilings | None = None
    """The best that earlier workers of the run have found: they are those of the machine."""
    parent_pid: int
    """The runner; a worker with another parent has been orphaned."""


class MeasureCell(Strict):
    """Request to a worker that serves: measure the cell with this index in the job, in this round."""

    index: int
    round: int


class Hello(Strict):
    """The worker is ready: imports done, process pinned."""

    event: Literal["hello"] = "hello"
    environment: dict[str, Any]


class Checked(Strict):
    """The equivalence check was run, or an earlier one holds."""

    event: Literal["checked"] = "checked"
    gate: Gate
    products: dict[str, int] = Field(default_factory=dict)
    """The outcomes that the worker found or was given."""


class Streamed(Strict):
    """The streamed prefill of the decode cells has advanced."""

    event: Literal["streamed"] = "streamed"
    num_tokens: int
    total_tokens: int


class Refused(Strict):
    """Cells, by their index in the job, that cannot be measured in any round."""

    event: Literal["refused"] = "refused"
    cells: tuple[int, ...]
    status: Status
    error: str


class Ready(Strict):
    """A worker that serves waits for a request."""

    event: Literal["ready"] = "ready"


class Started(Strict):
    """The cell with this index in the job is about to be measured."""

    event: Literal["started"] = "started"
    index: int


class Advanced(Strict):
    """The started cell has advanced: its model has read this many tokens since the start."""

    event: Literal["advanced"] = "advanced"
    num_tokens: int


class Done(Strict):
    """The cell with this index has its record on disk."""

    event: Literal["done"] = "done"
    index: int
    status: Status
    error: str | None = None
    """Why it failed; or what is at fault about a measurement that succeeded."""


class Measured(Strict):
    """The measured ceilings: the result of an estimate, or what later workers of a run are given."""

    event: Literal["measured"] = "measured"
    ceilings: Ceilings


class Failed(Strict):
    """An error that ends the whole run: its class in `retbench.errors`, and its message."""

    event: Literal["failed"] = "failed"
    kind: str
    message: str

    def error(self) -> RetbenchError:
        """Return the error as the runner raises it.

        A class that `retbench.errors` lacks, such as one of a user's package, becomes a RetbenchError.
        """
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, RetbenchError):
            return kind(self.message)
        return RetbenchError(self.message)


class Ended(Strict):
    """The worker exits as intended; cells that it has not reported are left to another worker."""

    event: Literal["ended"] = "ended"


Message = Hello | Checked | Streamed | Refused | Ready | Started | Advanced | Done | Measured | Failed | Ended

_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="event")])


def encode(message: Message) -> bytes:
    """Return a message as one line, separated from any output before it."""
    return b"\n" + message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Message | None:
    """Return the message in a line; None for a line without one, such as a library's output."""
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError:
        return None
