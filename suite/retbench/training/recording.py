"""Records of training runs: how each was trained, what it came to, and its learning curve as series.

A run's record lies beside it as `record.json` before its checkpoint does, and is then appended to the records of the
machine; where a process died in between, the next one appends it.
"""

import hashlib
import json
import secrets
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.errors import RecordError, StorageError
from retbench.files import write_atomic
from retbench.measure.environment import describe_environment
from retbench.planning import cells
from retbench.records.record import (
    Metric,
    ModelInfo,
    Point,
    Record,
    Series,
    WeightsInfo,
    append_record,
    parse_record,
    read_records,
)
from retbench.training.curve import CurvePoint
from retbench.training.events import Tuning
from retbench.training.loop import Trainer
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.workloads.workload import code_of_parts

WORKLOAD = "training_run"
RECORD = "record.json"
_UNITS = {
    "train_loss_nats": "nats",
    "validation_loss_nats": "nats",
    "learning_rate": "ratio",
    "grad_norm": "ratio",
    "tokens_per_s": "tokens/s",
}


class Recorder:
    """Writes the records of a plan's runs.

    Args:
        plan: The plan.
        out: Root of the results; records go to `<out>/<machine>/<experiment>/<run_id>.jsonl`.
    """

    def __init__(self, plan: TrainingPlan, out: Path) -> None:
        self._plan = plan
        self.environment = describe_environment(plan.device, plan.threads)
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        folder = out / self.environment["machine"] / plan.experiment.name
        self.path = folder / f"{self.run_id}.jsonl"
        known, _ = read_records(folder)
        self._known = {_identity(record) for record in known if record.workload == WORKLOAD}

    def keep(
        self,
        folder: Path,
        run: TrainingRun,
        trainer: Trainer,
        tuning: Tuning | None,
        *,
        weights_fingerprint: str | None = None,
        error: str | None = None,
    ) -> None:
        """Put the record of a run beside it: of one whose weights have a fingerprint, or of one that failed.

        Raises:
            StorageError: it could not be written.
        """
        plan, place = self._plan, trainer.place
        weights = None
        if weights_fingerprint is not None:
            weights = _weights_info(plan, run, weights_fingerprint)
        record = Record(
            run_id=self.run_id,
            experiment=plan.experiment.name,
            profile=plan.profile_name,
            cell_id=_cell_id(plan, run),
            round=0,
            started_at=place.started_at,
            status="ok" if error is None else "failed",
            error=error,
            model=_model_info(run, plan.config(run), weights),
            workload=WORKLOAD,
            point=Point(
                batch_size=plan.spec.batch_size, context_len=plan.spec.seq_len, task=plan.corpus.name
            ),
            settings=_settings(plan),
            backend=_what_ran(plan, run, trainer, tuning),
            environment=self.environment | code_of_parts(plan.config(run).architecture, WORKLOAD),
            metrics=_metrics(plan, place.curve, place.step, place.total_seconds),
            series=_series(place.curve),
            absent={} if place.curve else {"validation_loss_nats": "the run ended before it was scored"},
            command=plan.command,
        )
        _write(folder, record)

    def publish(self, folder: Path) -> None:
        """Append the record that lies beside a run to those of the machine, unless it is there already.

        Raises:
            StorageError: it could not be written.
        """
        record = _read(folder)
        if record is not None and _identity(record) not in self._known:
            append_record(self.path, record)
            self._known.add(_identity(record))

    def find_failure(self, folder: Path, run: TrainingRun) -> Record | None:
        """The record of a run that failed before, where it would fail again: the same run, device and code."""
        record = _read(folder)
        if record is None or record.status != "failed" or record.cell_id != _cell_id(self._plan, run):
            return None
        now = self.environment | code_of_parts(self._plan.config(run).architecture, WORKLOAD)
        names = ("code_revision", "model_code", "workload_code")
        return record if all(record.environment.get(name) == now[name] for name in names) else None

    def adopt(self, folder: Path, run: TrainingRun, tuning: Tuning | None) -> None:
        """Make the record beside a run of the grid that of the final run which is the same training."""
        record = _read(folder)
        if record is not None:
            plan = self._plan
            backend = {**record.backend, **_own(plan, run, tuning)}
            _write(folder, record.model_copy(update={"cell_id": _cell_id(plan, run), "backend": backend}))


def _identity(record: Record) -> tuple[str, str]:
    """What tells a run from others: when it began, or, of one that failed and is tried again, why it failed."""
    return record.cell_id, record.error or record.started_at


def _write(folder: Path, record: Record) -> None:
    write_atomic(folder / RECORD, record.model_dump_json().encode())


def _read(folder: Path) -> Record | None:
    """The record beside a run; None where there is none."""
    path = folder / RECORD
    try:
        return parse_record(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}. Check its permissions.") from error
    except RecordError as error:
        raise RecordError(f"{path}: {error} Train the run anew with --fresh, or remove the file.") from error


def _cell_id(plan: TrainingPlan, run: TrainingRun) -> str:
    """Hash of what determines a run, of what it is for, and of what it runs on."""
    told = {
        **plan.determined_by(run),
        "name": run.model_name,
        "role": run.role,
        "device": plan.device,
        "threads": plan.threads,
    }
    if plan.world_size > 1:
        told["world_size"] = plan.world_size
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _settings(plan: TrainingPlan) -> dict[str, Any]:
    """What is the same for every run of a plan."""
    spec = plan.spec
    return {
        "device": plan.device,
        "threads": plan.threads,
        "dtype": "float32",
        "autocast": spec.autocast,
        "activation_checkpointing": plan.profile.activation_checkpointing,
        "corpus": plan.corpus.name,
        "corpus_fingerprint": plan.corpus.fingerprint,
        "tokenizer": plan.tokenizer.name,
        "tokenizer_fingerprint": plan.tokenizer.fingerprint,
        "micro_batch_size": spec.micro_batch_size,
        "validation_tokens": spec.validation_tokens,
        "recipe": spec.recipe,
        "learning_rates": list(spec.learning_rates),
        **plan.recipe.model_dump(mode="json", exclude={"source"}),
    }


def _what_ran(
    plan: TrainingPlan, run: TrainingRun, trainer: Trainer, tuning: Tuning | None
) -> dict[str, str | int | float | bool]:
    """What is a run's own; of a final run also where its rate was found."""
    told: dict[str, str | int | float | bool] = {
        "training": "+".join(sorted(set(trainer.model.ran().values()))),
        "optimizer": "AdamW, fused",
        "processes_in_turn": trainer.place.num_processes,
        "world_size": plan.world_size,
        **_own(plan, run, tuning),
    }
    chunk = cells.chunk_size(plan.entry(run))
    return told if chunk is None else {**told, "chunk_size": chunk}


def _own(plan: TrainingPlan, run: TrainingRun, tuning: Tuning | None) -> dict[str, str | int | float | bool]:
    """What a run is, and where its rate is from."""
    assert run.learning_rate is not None
    told: dict[str, str | int | float | bool] = {
        "role": run.role,
        "seed": run.seed,
        "num_steps": run.num_steps,
        "learning_rate": run.learning_rate,
        "training_fingerprint": plan.fingerprint(run),
    }
    if tuning is None:
        return told
    return {
        **told,
        "tuned_at": tuning.size,
        "best_rate_is": f"the {tuning.edge} of the grid" if tuning.edge else "inside the grid",
    }


def _model_info(run: TrainingRun, config: ModelConfig, weights: WeightsInfo | None) -> ModelInfo:
    """The model of a run as records describe it."""
    return ModelInfo(
        name=run.model_name,
        architecture=config.architecture,
        variant=config.variant,
        size=run.size,
        num_params=costs.num_params(config),
        num_params_nonembedding=costs.num_params_nonembedding(config),
        config=config.model_dump(),
        weights=weights,
    )


def _weights_info(plan: TrainingPlan, run: TrainingRun, fingerprint: str) -> WeightsInfo:
    """The weights that a run left."""
    return WeightsInfo(
        source=f"{plan.experiment.name}/{plan.profile_name}",
        fingerprint=fingerprint,
        format="retbench",
        seed=run.seed,
        num_tokens=plan.num_tokens(run),
        learning_rate=run.learning_rate,
        corpus=plan.corpus.name,
    )


def _metrics(
    plan: TrainingPlan, curve: list[CurvePoint], step: int, total_seconds: float
) -> dict[str, Metric]:
    """What a run came to."""
    num_tokens = step * plan.spec.tokens_per_step
    found = {"num_tokens": Metric(unit="count", value=num_tokens)}
    if not curve:
        return found
    last = curve[-1]
    return found | {
        "validation_loss_nats": Metric(unit="nats", value=last.validation_loss_nats),
        "train_loss_nats": Metric(unit="nats", value=last.train_loss_nats),
        "training_s": Metric(unit="s", value=total_seconds),
        "tokens_per_s": Metric(
            unit="tokens/s",
            value=num_tokens / total_seconds,
            samples=tuple(point.tokens_per_s for point in curve),
        ),
    }


def _series(curve: list[CurvePoint]) -> dict[str, Series]:
    """The learning curve over the tokens learned from."""
    if not curve:
        return {}
    tokens = tuple(float(point.num_tokens) for point in curve)
    return {
        field.name: Series(
            unit=_UNITS[field.name],
            x_name="tokens",
            x=tokens,
            y=tuple(getattr(point, field.name) for point in curve),
        )
        for field in fields(CurvePoint)
        if field.name in _UNITS
    }
