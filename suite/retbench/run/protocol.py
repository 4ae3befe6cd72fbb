"""What runner and worker say to each other: a job down the worker's stdin, messages back, each a JSON line.

The runner keeps the worker's stdin open for as long as it lives; its end is the worker's sign to stop.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from retbench.planning.cells import Cell
from retbench.records.record import Ceilings, Gate, Status
from retbench.strict import Strict

Task = Literal["prepare", "measure", "serve", "ceilings"]

VERSION = 2
"""Of what is said here: two revisions whose versions differ cannot be measured in turn by one runner."""

CELL_MARK = b"retbench: the next cell"
"""A line that a worker writes to its stderr ahead of each `Started`: what stands before it says nothing of the cell.

`Started` itself comes by another pipe, and may be heard after the last words of a cell that dies at once.
"""


class RunInfo(Strict):
    """What every record of a run says about the run."""

    run_id: str
    experiment: str
    profile: str
    command: str
    code_revision: str
    """Code revision of the runner; a worker that finds another one does not measure the same thing."""
    codes: dict[str, dict[str, str]] = Field(default_factory=dict)
    """The runner's hashes of the code of model and workload, by cell_id; see `recording.code_of_cell`."""


class Job(Strict):
    """What a worker is to do, for one subject.

    prepare: run the gate, and stream the states that decode cells start from into `states_dir`.
    measure: measure the cells in the order given, appending each record to `records_path`.
    serve: measure a cell each time that a visit asks for it, so that two workers can take turns.
    ceilings: measure what the device reaches, for an estimate.
    """

    task: Task
    run: RunInfo
    cells: tuple[Cell, ...] = Field(min_length=1)
    round: int = 0
    gate: Gate | None = None
    """What the prepare worker found; goes into every record."""
    records_path: Path
    states_dir: Path
    data_dir: Path | None = None
    """Where local data is looked for."""
    parent_pid: int
    """The runner; a worker with another parent has been orphaned."""


class Visit(Strict):
    """To a worker that serves: measure the cell with this index in the job, in this round."""

    index: int
    round: int


class Hello(Strict):
    """The worker is up: imports done, process pinned."""

    event: Literal["hello"] = "hello"
    environment: dict[str, Any]


class Checked(Strict):
    """The gate was run."""

    event: Literal["checked"] = "checked"
    gate: Gate


class Streamed(Strict):
    """The streamed prefill of the decode cells went on."""

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
    """A worker that serves waits for a visit."""

    event: Literal["ready"] = "ready"


class Started(Strict):
    """The cell with this index in the job is about to be measured."""

    event: Literal["started"] = "started"
    index: int


class Advanced(Strict):
    """The cell that was started goes on: a model has read so many tokens of what it is evaluated on."""

    event: Literal["advanced"] = "advanced"
    num_tokens: int
    """Since the cell was started."""


class Done(Strict):
    """The cell with this index has its record on disk."""

    event: Literal["done"] = "done"
    index: int
    status: Status
    error: str | None = None


class Measured(Strict):
    """The ceilings that were asked for."""

    event: Literal["measured"] = "measured"
    ceilings: Ceilings


class Failed(Strict):
    """An error that ends the whole run: its class in `retbench.errors`, and its message."""

    event: Literal["failed"] = "failed"
    kind: str
    message: str


class Ended(Strict):
    """The worker leaves on its own account; cells it has not told of are another worker's."""

    event: Literal["ended"] = "ended"


Message = Hello | Checked | Streamed | Refused | Ready | Started | Advanced | Done | Measured | Failed | Ended

_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="event")])


def encode(message: Message) -> bytes:
    """A message as the line that carries it, set off from whatever stands before it."""
    return b"\n" + message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Message | None:
    """The message in a line; None for a line that holds none, such as a library's print."""
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError:
        return None
