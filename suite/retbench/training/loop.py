"""The loop of one run: steps, points of the learning curve, snapshots; it goes on exactly where it stopped."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retbench.data.batches import Batches
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.planning import cells
from retbench.records.record import utc_now
from retbench.training import snapshots
from retbench.training.curve import CurvePoint, write_curve
from retbench.training.divergence import LossMonitor
from retbench.training.events import Noted, PointAdded, Tell
from retbench.training.losses import mean_loss, summed_loss
from retbench.training.optimizer import clip_gradients, lay_out_for_training, make_optimizer, set_rate
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.training.ranks import ALONE, Ranks
from retbench.training.sharding import let_go, shard
from retbench.training.trained import CURVE, STEPS

OnStep = Callable[[int, float, float], None]
"""Told of every step: its number from 1, its loss, its seconds."""


class Stopped(Exception):  # noqa: N818 - an outcome, not an error
    """The run was told to stop; its snapshot is on disk."""


@dataclass
class Place:
    """How far a run is, beside its tensors.

    Attributes:
        step: Steps done.
        started_at: When the run began, as records state it.
        num_processes: Times that it was begun or went on: one, and one for every time that it was ended before.
        loss_sum: Losses added up since the last point of the curve.
        seconds: Of the steps since the last point.
        total_seconds: Of all steps.
        recent_losses: What the next loss is held against.
        curve: The points so far.
    """

    step: int = 0
    started_at: str = field(default_factory=utc_now)
    num_processes: int = 1
    loss_sum: float = 0.0
    seconds: float = 0.0
    total_seconds: float = 0.0
    recent_losses: list[float] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As a snapshot has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "Place":
        """What `to_json` gave."""
        return cls(**{**told, "curve": [CurvePoint(**point) for point in told["curve"]]})


class Trainer:
    """One run.

    Args:
        plan: The plan that it is part of.
        run: The run, its learning rate decided.
        batches: What it learns from, by step.
        validation: Rows (B, T + 1) that the points of the curve are scored on, by every process alike: they are few,
            and so the loss is that of one process.
        folder: Where it lies.
        tell: Receives the events.
        ranks: The processes that train it together; each learns from its part of every batch.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        run: TrainingRun,
        batches: Batches,
        validation: Tensor,
        folder: Path,
        tell: Tell,
        ranks: Ranks = ALONE,
    ) -> None:
        entry = plan.entry(run)
        self.plan, self.run, self.folder = plan, run, folder
        self.device = torch.device(plan.device)
        self.model: Decoder = build_model(
            plan.config(run),
            dtype=torch.float32,
            device=self.device,
            seed=run.seed,
            backend=entry.backend,
            chunk_size=cells.chunk_size(entry),
        )
        lay_out_for_training(self.model)
        self.model.activation_checkpointing = plan.profile.activation_checkpointing
        if ranks.size > 1:
            shard(self.model, ranks.size)
        self._ranks = ranks
        self.optimizer = make_optimizer(self.model, plan.recipe)
        self.place = Place()
        self._batches, self._tell = batches, tell
        self._validation = validation.to(self.device)
        self._micro_batch_size = plan.spec.micro_batch_size or plan.spec.batch_size
        self._restore()
        self._monitor = LossMonitor(
            plan.config(run).vocab_size, plan.spec.spike_ratio, self.place.recent_losses
        )

    def train(self, stop: Callable[[], bool], on_step: OnStep) -> None:
        """Take the steps that are left.

        Raises:
            Stopped: `stop` said so; a snapshot was written.
            DivergedError: the loss or the gradients went wrong; the weights are those of the step before.
            StorageError: a snapshot or the curve could not be written.
        """
        spec, place = self.plan.spec, self.place
        self.model.train()
        while place.step < self.run.num_steps:
            if self._ranks.any(stop()):
                self._snapshot()
                raise Stopped
            started = time.perf_counter()
            loss, grad_norm = self._step()
            seconds = time.perf_counter() - started
            place.step += 1
            place.loss_sum += loss
            place.seconds += seconds
            place.total_seconds += seconds
            on_step(place.step, loss, seconds)
            last = place.step == self.run.num_steps
            if last or place.step % spec.validate_every == 0:
                self._add_point(grad_norm)
            if not last and place.step % spec.checkpoint_every == 0:
                self._snapshot()

    def _step(self) -> tuple[float, float]:
        """One optimiser step: its loss, nats per token, and the norm of its gradients."""
        recipe, step = self.plan.recipe, self.place.step
        rows = self._batches.batch(step, self._ranks.rank, self._ranks.size).to(self.device)  # (B, T + 1)
        num_tokens = rows.shape[0] * (rows.shape[1] - 1)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part in rows.split(self._micro_batch_size):
            with self._autocast():
                loss = summed_loss(self.model, part) / num_tokens
            loss.backward()  # of a spread model, to the mean over the processes
            total += loss.detach()
        norm = clip_gradients(self.model, recipe.grad_clip)
        loss_value, norm_value = float(self._ranks.mean(total)), float(norm)
        self._monitor.check(step + 1, loss_value, norm_value)
        assert self.run.learning_rate is not None
        set_rate(self.optimizer, recipe.rate(step, self.run.num_steps, self.run.learning_rate))
        self.optimizer.step()
        return loss_value, norm_value

    def _autocast(self) -> AbstractContextManager[None]:
        """Products in bfloat16 where the experiment asks for it."""
        enabled = self.plan.spec.autocast == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _add_point(self, grad_norm: float) -> None:
        """Score the validation text and add a point to the curve."""
        place, spec = self.place, self.plan.spec
        since = place.step - (place.curve[-1].step if place.curve else 0)
        self.model.eval()
        with self._autocast():
            validation_loss = mean_loss(self.model, self._validation, self._micro_batch_size)
        self.model.train()
        let_go(self.model)
        assert self.run.learning_rate is not None
        point = CurvePoint(
            step=place.step,
            num_tokens=place.step * spec.tokens_per_step,
            train_loss_nats=place.loss_sum / since,
            validation_loss_nats=validation_loss,
            learning_rate=self.plan.recipe.rate(place.step - 1, self.run.num_steps, self.run.learning_rate),
            grad_norm=grad_norm,
            tokens_per_s=since * spec.tokens_per_step / place.seconds,
        )
        place.curve.append(point)
        place.loss_sum = place.seconds = 0.0
        self._ranks.lead(lambda: write_curve(self.folder / CURVE, place.curve))
        self._tell(PointAdded(self.run, point))

    def _snapshot(self) -> None:
        """Write down all that the rest of the run depends on."""
        place, steps = self.place, self.folder / STEPS
        place.recent_losses = self._monitor.recent
        tensors = snapshots.gather(self.model, self.optimizer)
        snapshots.save_snapshot(steps, place.step, tensors, place.to_json(), self._ranks)
        self._ranks.lead(lambda: snapshots.prune(steps, self.plan.spec.keep_last))

    def _restore(self) -> None:
        """Go to the latest snapshot that is whole, where there is one."""
        found = snapshots.find_snapshot(
            self.folder / STEPS, lambda text: self._tell(Noted(self.run, text)), self._ranks
        )
        if found is None:
            return
        found.restore(self.model, self.optimizer)
        self.place = Place.from_json(found.state)
        self.place.num_processes += 1
        self._ranks.lead(lambda: write_curve(self.folder / CURVE, self.place.curve))
