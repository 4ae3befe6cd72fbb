"""The learning curve of a run: a point every so many steps, kept as a table that any program reads."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from retbench.files import write_atomic


@dataclass(frozen=True)
class CurvePoint:
    """What is known after a step.

    Attributes:
        step: Steps done.
        num_tokens: Tokens learned from so far.
        train_loss_nats: Mean over the steps since the last point, nats per token.
        validation_loss_nats: Nats per token of the validation text.
        learning_rate: Of this step.
        grad_norm: Norm of all gradients of this step, before clipping.
        tokens_per_s: Over the steps since the last point; validation and snapshots are left out.
    """

    step: int
    num_tokens: int
    train_loss_nats: float
    validation_loss_nats: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float


def write_curve(path: Path, points: Sequence[CurvePoint]) -> None:
    """Write all points in one piece; numbers are written so that they read back exactly."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [field.name for field in fields(CurvePoint)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    write_atomic(path, table.getvalue().encode())
