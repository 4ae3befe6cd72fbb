"""The training loop of one run: steps, points of the learning curve, and snapshots that it continues from exactly."""

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from retbench.architectures.blame import blaming_package
from retbench.data.batches import Batches, Examples
from retbench.data.task_batches import SyntheticBatches
from retbench.errors import DivergedError
from retbench.evaluation.answers import answer_shares
from retbench.files import write_atomic
from retbench.measure import environment
from retbench.measure.compiled import compile_training
from retbench.measure.limits import make_blas_handles
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.ops.linear import RowProducts
from retbench.records.record import utc_now
from retbench.training import snapshots
from retbench.training.events import CurvePoint, Noted, Notify, PointAdded
from retbench.training.optimization import (
    LossMonitor,
    clip_gradients,
    make_contiguous,
    make_optimizer,
    mean_loss,
    set_rate,
    summed_loss,
)
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.training.ranks import ALONE, Ranks
from retbench.training.sharding import reshard, shard
from retbench.training.trained import CURVE, STEPS

OnStep = Callable[[int, float, float], None]
"""Called after every step with its number from 1, its loss and its seconds."""


class Stopped(Exception):  # noqa: N818 - an outcome, not an error
    """The run was stopped; its snapshot is on disk."""


@dataclass
class TrainerState:
    """Progress of a run after `step` steps, without its tensors; snapshots store it as JSON.

    Attributes:
        num_processes: Number of processes in turn: one, plus one per interruption.
        loss_sum: Sum of the losses since the last point of the curve.
        seconds: Time of the steps since the last point.
        recent_losses: Losses that the next one is compared with.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    step: int = 0
    started_at: str = field(default_factory=utc_now)
    num_processes: int = 1
    loss_sum: float = 0.0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    total_seconds: Annotated[float, Field(ge=0)] = 0.0
    recent_losses: list[float] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)


_STATE = TypeAdapter(TrainerState)


def write_curve(path: Path, points: Sequence[CurvePoint]) -> None:
    """Write the learning curve as CSV, atomically; every number reads back exactly."""
    table = io.StringIO(newline="")
    names = [column.name for column in fields(CurvePoint)]
    if all(point.validation_acc is None for point in points):
        names.remove("validation_acc")
    writer = csv.DictWriter(table, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    write_atomic(path, table.getvalue().encode())


class Trainer:
    """Trains one run, from its latest snapshot if there is one.

    Args:
        plan: The plan of the run.
        run: The run, with its learning rate.
        batches: The training text or task; each process trains on its part of every batch.
        validation: Examples for the points of the curve. Every process scores all of these few, so that the loss equals
            that of one process.
        folder: Folder of the run.
        notify: Receives the events.
        ranks: The processes that train the run together.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        run: TrainingRun,
        batches: Batches | SyntheticBatches,
        validation: Examples,
        folder: Path,
        notify: Notify,
        ranks: Ranks = ALONE,
    ) -> None:
        entry = plan.entry(run)
        self.plan, self.run, self.folder = plan, run, folder
        self.device = torch.device(plan.device)
        environment.use_device(self.device)
        make_blas_handles(self.device, gradients=True)
        with blaming_package(plan.config(run)):
            self.model: Decoder = build_model(
                plan.config(run),
                dtype=torch.float32,
                device=self.device,
                seed=run.seed,
                backend=entry.backend,
                chunk_size=entry.chunk_size,
                compute_dtype=torch.bfloat16 if self._uses_autocast else None,
                products=RowProducts(),  # it takes no decode steps
                initialisation=plan.initialisation(run),
            )
        make_contiguous(self.model)
        self.model.activation_checkpointing = plan.profile.activation_checkpointing
        if ranks.size > 1:
            shard(self.model, ranks.size)
        self._forward = compile_training(self.model) if plan.spec.compile else self.model
        self._ranks = ranks
        self.optimizer = make_optimizer(self.model, plan.recipe)
        self.state = TrainerState()
        self._batches, self._notify = batches, notify
        self._validation = validation.to(self.device)
        self._micro_batch_size = plan.spec.micro_batch_size or plan.spec.batch_size
        self._restore()
        self._monitor = LossMonitor(
            plan.config(run).vocab_size, plan.spec.spike_ratio, self.state.recent_losses
        )

    def train(self, stop: Callable[[], bool], on_step: OnStep) -> None:
        """Take the remaining steps, or those to the accuracy at which the task ends a run.

        Raises:
            Stopped: `stop` returned True; a snapshot was written.
            ConfigError: a mixer of a user's package failed.
            DivergedError: the loss or the gradients diverged; the weights are those of the step before.
            StorageError: a snapshot or the curve could not be written.
        """
        spec, state = self.plan.spec, self.state
        self.model.train()
        if spec.compile:
            self._compile()
        while state.step < self.run.num_steps:
            if self._ranks.any(stop()):
                self._snapshot()
                raise Stopped
            started = time.perf_counter()
            with blaming_package(self.model.config):
                loss, grad_norm = self._step()
            seconds = time.perf_counter() - started
            state.step += 1
            state.loss_sum += loss
            state.seconds += seconds
            state.total_seconds += seconds
            on_step(state.step, loss, seconds)
            last = state.step == self.run.num_steps
            if (last or state.step % spec.validate_every == 0) and self._add_point(grad_norm):
                return
            if not last and state.step % spec.checkpoint_every == 0:
                self._snapshot()

    def _step(self) -> tuple[float, float]:
        """Take one optimiser step; return its loss in nats per target and the norm of its gradients."""
        step = self.state.step
        total = self._accumulate()
        norm = clip_gradients(self.model, self.plan.recipe.grad_clip)
        loss_value, norm_value = float(self._ranks.mean(total)), float(norm)
        self._monitor.check(step + 1, loss_value, norm_value)
        set_rate(self.optimizer, self._learning_rate(step))
        self.optimizer.step()
        if self.device.type == "cuda":  # the clock of the step includes it
            torch.cuda.synchronize(self.device)
        return loss_value, norm_value

    def _accumulate(self) -> Tensor:
        """Replace the gradients by those of the next step; return this process's share of the loss, ()."""
        step = self.state.step
        examples = self._batches.examples(step, self._ranks.rank, self._ranks.size).to(self.device)
        share = self._batches.num_targets(step) / self._ranks.size
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part in examples.parts(self._micro_batch_size):
            with self._autocast():
                loss = summed_loss(self._forward, part) / share
            loss.backward()  # a sharded model averages the gradients over the processes
            total += loss.detach()
        return total

    def _compile(self) -> None:
        """Compile forward and backward, outside the clock; run eagerly before, when modules note their kernels."""
        # In the dtype of the steps: kernels of other packages take no float32, and torch's own are others in it.
        with torch.no_grad(), self._autocast():
            summed_loss(self.model, self._validation.parts(self._micro_batch_size)[0])
        self._accumulate()

    def _learning_rate(self, step: int) -> float:
        assert self.run.learning_rate is not None
        return self.plan.recipe.rate(step, self.run.num_steps, self.run.learning_rate)

    @property
    def _uses_autocast(self) -> bool:
        """True if the products run in bfloat16, from weights in float32."""
        return self.plan.spec.autocast == "bfloat16"

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._uses_autocast)

    def _add_point(self, grad_norm: float) -> bool:
        """Score the validation examples and add a point to the curve; return whether the task ends the run there."""
        state, spec = self.state, self.plan.spec
        since = state.step - (state.curve[-1].step if state.curve else 0)
        validation_loss, shares = self._validate()
        if not math.isfinite(validation_loss):
            raise DivergedError(f"step {state.step}: the validation loss is {validation_loss}.")
        point = CurvePoint(
            step=state.step,
            num_tokens=state.step * spec.tokens_per_step,
            train_loss_nats=state.loss_sum / since,
            validation_loss_nats=validation_loss,
            learning_rate=self._learning_rate(state.step - 1),
            grad_norm=grad_norm,
            tokens_per_s=since * spec.tokens_per_step / state.seconds,
            validation_acc=None if shares is None else float(shares.mean()),
        )
        state.curve.append(point)
        state.loss_sum = state.seconds = 0.0
        self._ranks.lead(lambda: write_curve(self.folder / CURVE, state.curve))
        self._notify(PointAdded(self.run, point))
        return shares is not None and self._ends(shares)

    def _validate(self) -> tuple[float, Tensor | None]:
        """Return the validation loss, and of a task the share of right answers of each example, (B,)."""
        self.model.eval()
        with self._autocast(), blaming_package(self.model.config):
            loss = mean_loss(self.model, self._validation, self._micro_batch_size)
            asked = self._validation.answers_only
            shares = answer_shares(self.model, self._validation, self._micro_batch_size) if asked else None
        self.model.train()
        reshard(self.model)
        return loss, shares

    def _ends(self, shares: Tensor) -> bool:
        """Return whether the accuracy of every kind of example, which take turns, is that at which a run ends."""
        task = self.plan.spec.task
        if task is None or task.stop_accuracy is None:
            return False
        num_kinds = len(task.kinds)
        return all(float(shares[turn::num_kinds].mean()) >= task.stop_accuracy for turn in range(num_kinds))

    def _snapshot(self) -> None:
        """Write a snapshot of everything that the rest of the run depends on."""
        state, steps = self.state, self.folder / STEPS
        state.recent_losses = self._monitor.recent
        tensors = snapshots.gather(self.model, self.optimizer)
        snapshots.save_snapshot(steps, state.step, tensors, asdict(state), self._ranks)
        self._ranks.lead(lambda: snapshots.prune(steps, self.plan.spec.keep_last))

    def _restore(self) -> None:
        """Restore the latest undamaged snapshot, if there is one; CheckpointError if it is not of this run."""
        found = snapshots.find_snapshot(
            self.folder / STEPS, lambda text: self._notify(Noted(self.run, text)), self._ranks
        )
        if found is None:
            return
        try:
            state = _STATE.validate_python(found.state)
        except ValidationError as error:
            raise found.misfit(f"a state of another form ({error.errors()[0]['msg']})") from error
        steps = [0, *(point.step for point in state.curve), state.step, self.run.num_steps]
        if steps != sorted(steps) or state.step == self.run.num_steps:
            raise found.misfit(f"{state.step} of {self.run.num_steps} steps and a curve that is not theirs")
        found.restore(self.model, self.optimizer)
        self.state = state
        self.state.num_processes += 1
        self._ranks.lead(lambda: write_curve(self.folder / CURVE, self.state.curve))
