"""Records of training runs: settings, results, and the learning curve as series.

A run's record is written to its folder as `record.json`, before the checkpoint, and then appended to the records of the
machine. If the process is killed in between, the next one appends it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from retbench.architectures import costs
from retbench.errors import RecordError, StorageError
from retbench.files import own_path, write_atomic
from retbench.measure.environment import describe_environment
from retbench.records.record import Metric, ModelInfo, Point, Record, Series, WeightsInfo
from retbench.records.store import append_record, new_run_id, parse_record, read_records
from retbench.training.events import CurvePoint, Tuning
from retbench.training.loop import Trainer, TrainerState
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.workloads.workload import code_of_parts

Facts = dict[str, str | int | float | bool]
WORKLOAD = "training_run"
RECORD = "record.json"
_CURVE_UNITS = {
    "train_loss_nats": "nats",
    "validation_loss_nats": "nats",
    "learning_rate": "ratio",
    "grad_norm": "ratio",
    "tokens_per_s": "tokens/s",
}


class Recorder:
    """Writes the records of a plan's runs to `<out>/<machine>/<experiment>/<run_id>.jsonl`."""

    def __init__(self, plan: TrainingPlan, out: Path) -> None:
        self._plan = plan
        self.environment = describe_environment(plan.device, plan.threads)
        self.run_id = new_run_id()
        folder = own_path(out, self.environment["machine"], plan.experiment.name)
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
        """Write the record of a run to its folder, with the fingerprint of its weights or with its error.

        Raises:
            StorageError: it could not be written.
        """
        plan, state = self._plan, trainer.state
        backend = _executed_backend(plan, run, trainer, tuning)
        if error is not None:
            backend["spike_ratio"] = plan.spec.spike_ratio
        record = Record(
            run_id=self.run_id,
            experiment=plan.experiment.name,
            profile=plan.profile_name,
            cell_id=_cell_id(plan, run),
            round=0,
            started_at=state.started_at,
            status="ok" if error is None else "failed",
            error=error,
            model=_model_info(plan, run, state, weights_fingerprint),
            workload=WORKLOAD,
            point=Point(
                batch_size=plan.spec.batch_size, context_len=plan.spec.seq_len, task=plan.source.name
            ),
            settings=_settings(plan),
            backend=backend,
            environment=self.environment | code_of_parts(plan.config(run), WORKLOAD),
            metrics=_metrics(plan, state),
            series=_series(state.curve),
            absent=_absent(plan, state),
            command=plan.command,
        )
        _write(folder, record)

    def publish(self, folder: Path) -> None:
        """Append the record in a run's folder to those of the machine, unless it is among them.

        Raises:
            StorageError: it could not be written.
        """
        record = _read(folder)
        if record is not None and _identity(record) not in self._known:
            append_record(self.path, record)
            self._known.add(_identity(record))

    def find_failure(self, folder: Path, run: TrainingRun) -> Record | None:
        """Return the record of a run that failed with the same settings, device, code and limit on spikes, or None.

        The limit is no part of a run's identity, since it changes no weight, but it decides which loss is a failure.
        """
        record = _read(folder)
        if record is None or record.status != "failed" or record.cell_id != _cell_id(self._plan, run):
            return None
        if "num_tokens" not in record.metrics:
            return None
        if record.backend.get("spike_ratio") != self._plan.spec.spike_ratio:
            return None
        now = self.environment | code_of_parts(self._plan.config(run), WORKLOAD)
        names = ("code_revision", "model_code", "workload_code")
        return record if all(record.environment.get(name) == now[name] for name in names) else None

    def adopt(self, folder: Path, run: TrainingRun, tuning: Tuning | None) -> None:
        """Change the record copied from a run of the grid to that of the equal final run."""
        record = _read(folder)
        if record is not None:
            plan = self._plan
            backend = {**record.backend, **_run_facts(plan, run, tuning)}
            _write(folder, record.model_copy(update={"cell_id": _cell_id(plan, run), "backend": backend}))


def _identity(record: Record) -> tuple[str, str]:
    """Return what identifies a run: its cell with its start, or with its error if it failed and is tried again."""
    return record.cell_id, record.error or record.started_at


def _write(folder: Path, record: Record) -> None:
    write_atomic(folder / RECORD, record.model_dump_json().encode())


def _read(folder: Path) -> Record | None:
    """Return the record in a run's folder, or None."""
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
    """Return a hash of everything that determines a run, its role and its device."""
    content = {
        **plan.determined_by(run),
        "name": run.model_name,
        "role": run.role,
        "device": plan.device,
        "threads": plan.threads,
    }
    if plan.world_size > 1:
        content["world_size"] = plan.world_size
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _settings(plan: TrainingPlan) -> dict[str, Any]:
    """Return the settings that all runs of a plan share."""
    spec = plan.spec
    return {
        "device": plan.device,
        "threads": plan.threads,
        "dtype": "float32",
        "autocast": spec.autocast,
        "compile": spec.compile,
        "activation_checkpointing": plan.profile.activation_checkpointing,
        "corpus": plan.source.name,
        "corpus_fingerprint": plan.source.fingerprint,
        **_settings_of_source(plan),
        "micro_batch_size": spec.micro_batch_size,
        "validation_tokens": spec.validation_tokens,
        "recipe": spec.recipe,
        "learning_rates": list(spec.learning_rates),
        **plan.recipe.model_dump(mode="json", exclude={"source"}),
    }


def _settings_of_source(plan: TrainingPlan) -> dict[str, Any]:
    """Return the tokenizer of a text, or the settings of a task."""
    if plan.text is None:
        assert plan.spec.task is not None
        return {"task": plan.spec.task.model_dump(mode="json")}
    tokenizer = plan.text.tokenizer
    return {"tokenizer": tokenizer.name, "tokenizer_fingerprint": tokenizer.fingerprint}


def _executed_backend(plan: TrainingPlan, run: TrainingRun, trainer: Trainer, tuning: Tuning | None) -> Facts:
    """Return the executed backend and the facts of the run."""
    facts: Facts = {
        "training": trainer.model.executed_names,
        "optimizer": "AdamW, fused",
        "processes_in_turn": trainer.state.num_processes,
        "world_size": plan.world_size,
        **_run_facts(plan, run, tuning),
    }
    entry = plan.entry(run)
    chunk = plan.config(run).chunk_size(entry.backend, entry.chunk_size)
    return facts if chunk is None else {**facts, "chunk_size": chunk}


def _run_facts(plan: TrainingPlan, run: TrainingRun, tuning: Tuning | None) -> Facts:
    """Return a run's role, seed and rate, and for a final run the origin of its rate."""
    assert run.learning_rate is not None
    facts: Facts = {
        "role": run.role,
        "seed": run.seed,
        "num_steps": run.num_steps,
        "learning_rate": run.learning_rate,
        "initialisation": plan.initialisation(run),
        "training_fingerprint": plan.fingerprint(run),
    }
    if tuning is not None:
        facts["tuned_at"] = tuning.size
        facts["best_rate_is"] = f"the {tuning.edge} of the grid" if tuning.edge else "inside the grid"
    return facts


def _model_info(
    plan: TrainingPlan, run: TrainingRun, state: TrainerState, weights_fingerprint: str | None
) -> ModelInfo:
    config, weights = plan.config(run), None
    if weights_fingerprint is not None:
        weights = WeightsInfo(
            source=f"{plan.experiment.name}/{plan.profile_name}",
            fingerprint=weights_fingerprint,
            format="retbench",
            seed=run.seed,
            num_tokens=state.step * plan.spec.tokens_per_step,
            learning_rate=run.learning_rate,
            corpus=plan.source.name,
        )
    return ModelInfo(
        name=run.model_name,
        architecture=config.architecture,
        variant=config.variant,
        size=run.size,
        num_params=costs.num_params(config),
        num_params_nonembedding=costs.num_params_nonembedding(config),
        config=config.model_dump(mode="json"),
        weights=weights,
    )


def _metrics(plan: TrainingPlan, state: TrainerState) -> dict[str, Metric]:
    num_tokens = state.step * plan.spec.tokens_per_step
    found = {"num_tokens": Metric(unit="count", value=num_tokens)}
    if not state.curve:
        return found
    last = state.curve[-1]
    if last.validation_acc is not None:
        found["validation_acc"] = Metric(unit="ratio", value=last.validation_acc)
    learnt = _learnt_step(plan, state)
    if learnt is not None:
        found["learnt_step"] = Metric(unit="count", value=learnt)
    return found | {
        "validation_loss_nats": Metric(unit="nats", value=last.validation_loss_nats),
        "train_loss_nats": Metric(unit="nats", value=last.train_loss_nats),
        "training_s": Metric(unit="s", value=state.total_seconds),
        "tokens_per_s": Metric(
            unit="tokens/s",
            value=num_tokens / state.total_seconds,
            samples=tuple(point.tokens_per_s for point in state.curve),
        ),
    }


def _learnt_step(plan: TrainingPlan, state: TrainerState) -> int | None:
    """Return the step of the first point of the curve at which a task was learnt; None for a text too."""
    task = plan.spec.task
    steps = (
        p.step
        for p in state.curve
        if p.validation_acc is not None and task and task.is_learnt(p.validation_acc)
    )
    return next(steps, None)


def _absent(plan: TrainingPlan, state: TrainerState) -> dict[str, str]:
    """Return the metrics that a run does not have, with the reasons."""
    if not state.curve:
        return {"validation_loss_nats": "the run ended before it was scored"}
    task = plan.spec.task
    if task is None or _learnt_step(plan, state) is not None:
        return {}
    best = max(point.validation_acc or 0.0 for point in state.curve)
    return {
        "learnt_step": f"not learnt: the accuracy was never more than {best:.3f}, and guessing has "
        f"{task.guess_accuracy:.3f}"
    }


def _series(curve: list[CurvePoint]) -> dict[str, Series]:
    """Return the learning curve over the number of training tokens."""
    if not curve:
        return {}
    tokens = tuple(float(point.num_tokens) for point in curve)
    units = _CURVE_UNITS if curve[0].validation_acc is None else _CURVE_UNITS | {"validation_acc": "ratio"}
    return {
        name: Series(unit=unit, x_name="tokens", x=tokens, y=tuple(getattr(point, name) for point in curve))
        for name, unit in units.items()
    }
