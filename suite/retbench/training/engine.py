"""Carries out a training plan: the grid, each model's best learning rate, then the final runs, one after the other.

A run that diverges does not stop the others. A run that is on disk is not trained again, nor is one that diverged with
the same code. The same command therefore continues after any interruption.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from retbench.checkpoints.format import Description
from retbench.checkpoints.native import save_checkpoint
from retbench.checkpoints.reading import FINAL
from retbench.checkpoints.weights import fingerprint_tensors
from retbench.config.training import TrainingSpec
from retbench.data.batches import Batches, Examples, next_tokens
from retbench.data.packing import PackedTokens
from retbench.data.task_batches import SyntheticBatches, mixed_examples
from retbench.errors import DivergedError, UnsupportedError, shown
from retbench.files import atomic_folder, storing
from retbench.measure.ceilings import measure_matmul_rate
from retbench.measure.limits import is_out_of_memory
from retbench.training import trained
from retbench.training.equivalence import check_users_models
from retbench.training.events import (
    Notify,
    RunResult,
    RunStarted,
    StepDone,
    TrainingPlanned,
    TrainingResult,
    Tuning,
)
from retbench.training.loop import Stopped, Trainer
from retbench.training.optimization import validation_rows
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.training.ranks import ALONE, Ranks
from retbench.training.recording import Recorder
from retbench.training.sharding import full_weights

EFFICIENCY = 0.4
"""Estimated ratio of a training step's FLOP/s to that of square matrix products."""


@dataclass(frozen=True)
class TrainingText:
    """The tokens of the corpus: the training split and the validation split."""

    train: PackedTokens
    validation: PackedTokens

    def batches(self, spec: TrainingSpec, seed: int) -> Batches:
        """Return the batches of a run; ConfigError if the text is shorter than one."""
        return Batches(self.train, batch_size=spec.batch_size, seq_len=spec.seq_len, seed=seed)

    def validation_examples(self, spec: TrainingSpec) -> Examples:
        """Return the rows that points of the curve score; ConfigError if there is nothing to score."""
        return next_tokens(validation_rows(self.validation, spec.validation_tokens, spec.seq_len))


class GeneratedExamples:
    """The examples of a synthetic task, which need no preparation."""

    def batches(self, spec: TrainingSpec, seed: int) -> SyntheticBatches:
        """Return the batches of a run."""
        assert spec.task is not None
        return SyntheticBatches(spec.task, batch_size=spec.batch_size, seq_len=spec.seq_len, seed=seed)

    def validation_examples(self, spec: TrainingSpec) -> Examples:
        """Return the examples that points of the curve score."""
        assert spec.task is not None
        count = spec.validation_tokens // spec.seq_len
        return mixed_examples(spec.task, "validation", spec.seq_len, start=0, count=count)


def train_all(
    plan: TrainingPlan,
    data: TrainingText | GeneratedExamples,
    out: Path,
    *,
    notify: Notify,
    stop: Callable[[], bool],
    ranks: Ranks = ALONE,
) -> TrainingResult:
    """Train every run of a plan that is not on disk yet.

    Args:
        plan: The runs to train.
        data: The tokens of the plan's corpus, or the examples of its task.
        out: Root of the results; `trained` documents the folders below it.
        notify: Receives the events.
        stop: Called between steps; returns whether to stop.
        ranks: The processes that train each run together; all of them call this, with one folder for all.

    Raises:
        ConfigError: a folder holds a run with other settings, or a mixer of a user's package fails; nothing was
            trained.
        GateError: the execution modes of a model with mixers of a user's package are not equivalent; nothing was
            trained.
        StorageError: a file could not be written; everything on disk is intact, and the same command continues.
        UnsupportedError: memory ran out; likewise.
    """
    engine = _Engine(plan, data, out, notify, stop, ranks)
    ranks.lead(engine.prepare)
    return engine.train_all()


def delete_runs(plan: TrainingPlan, out: Path) -> None:
    """Delete every run of a plan from the disk, so that all are trained anew.

    Raises:
        ConfigError: a folder is not below `out`; nothing was deleted.
        StorageError: one cannot be deleted.
    """
    for folder in [trained.run_folder(out, plan, run) for run in plan.runs]:
        if (folder / trained.RUN).is_file():
            with storing(folder):
                shutil.rmtree(folder)


def estimate_seconds(plan: TrainingPlan, runs: Sequence[TrainingRun]) -> list[float]:
    """Estimate the wall time of each run from its FLOPs and the rate of matrix products, which is measured now.

    Several processes are assumed to scale perfectly.
    """
    dtype = torch.bfloat16 if plan.spec.autocast == "bfloat16" else torch.float32
    rate = measure_matmul_rate(torch.device(plan.device), dtype)
    return [plan.flops(run) / (rate * plan.world_size) / EFFICIENCY for run in runs]


@contextmanager
def _within_memory(plan: TrainingPlan, run: TrainingRun) -> Iterator[None]:
    """Raise UnsupportedError if memory runs out while the block trains a run."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        checkpointing = (
            "" if plan.profile.activation_checkpointing else "--set activation_checkpointing=true, or "
        )
        raise UnsupportedError(
            f"training of {run.model_name} at size {run.size} does not fit in the memory of {plan.device}: "
            f"{shown(str(error))}. What is stored is kept. Give {checkpointing}a smaller training.micro_batch_size, "
            "for all models alike and with another --out."
        ) from error


class RemainingTime:
    """Estimates the remaining time of a command from the FLOPs that are done and left.

    Only the time of steps counts: with one step done, a compilation of minutes would say days.
    """

    def __init__(self, flops: float) -> None:
        self._left = flops
        self._done = 0.0
        self._seconds = 0.0

    def advance(self, flops: float, seconds: float) -> float:
        """Count FLOPs as done in this time and return the seconds left."""
        self._done += flops
        self._seconds += seconds
        return max(0.0, self._left - self._done) * self._seconds / self._done

    def leave_out(self, flops: float) -> None:
        """Subtract FLOPs that need not be done."""
        self._left -= flops


def best_rates(plan: TrainingPlan, results: Iterable[RunResult]) -> dict[tuple[str, str], Tuning]:
    """Return the rate with the lowest validation loss by (model, size) of the grid; a tie goes to the lower rate.

    A model whose whole grid failed is left out.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for result in results:
        run = result.run
        if run.role == "tuning" and result.validation_loss is not None:
            assert run.learning_rate is not None
            found.setdefault((run.model_name, run.size), []).append(
                (result.validation_loss, run.learning_rate)
            )
    return {
        (name, size): Tuning(name, size, rate, edge_of(rate, plan.spec.learning_rates))
        for (name, size), losses in found.items()
        for _, rate in [min(losses)]
    }


def edge_of(rate: float, grid: tuple[float, ...]) -> Literal["lowest", "highest"] | None:
    """Return the end of the grid that a rate is at; None inside the grid, or if the grid has only one rate."""
    if len(grid) == 1 or min(grid) < rate < max(grid):
        return None
    return "lowest" if rate == min(grid) else "highest"


@dataclass
class _Engine:
    """Trains the runs of a plan one after the other.

    The first process decides everything that depends on the disk; all processes follow the same runs.
    """

    plan: TrainingPlan
    data: TrainingText | GeneratedExamples
    out: Path
    notify: Notify
    stop: Callable[[], bool]
    ranks: Ranks

    def __post_init__(self) -> None:
        plan = self.plan
        self._remaining = RemainingTime(sum(map(plan.flops, plan.runs)))
        self._results: list[RunResult] = []
        self._tunings: dict[tuple[str, str], Tuning] = {}
        self._recorder: Recorder  # in the first process only
        self._validation = self.data.validation_examples(plan.spec)

    def prepare(self) -> None:
        """Check and tidy the folders of all runs, and read the records; called in the first process only."""
        folders = {run: self._folder(run) for run in self.plan.runs}
        for run, folder in folders.items():
            trained.check(folder, self.plan, run)
        for folder in folders.values():
            trained.remove_leftovers(folder)
        self._recorder = Recorder(self.plan, self.out)

    def _folder(self, run: TrainingRun) -> Path:
        return trained.run_folder(self.out, self.plan, run)

    def train_all(self) -> TrainingResult:
        """Train the grid, then the final runs."""
        plan = self.plan
        done = self.ranks.lead(lambda: sum(trained.is_done(self.out, plan, run) for run in plan.runs))
        self.notify(TrainingPlanned(len(plan.runs), done))
        if done < len(plan.runs):
            check_users_models(plan)
        interrupted = False
        try:
            for run in plan.tuning_runs:
                self._complete(run)
            self._tunings = best_rates(plan, self._results)
            for tuning in self._tunings.values():
                self.notify(tuning)
            for run in plan.final_runs:
                decided = self._tuning_of(run)
                self._complete(replace(run, learning_rate=decided.learning_rate) if decided else run)
        except Stopped:
            interrupted = True
        result = TrainingResult(tuple(self._results), tuple(self._tunings.values()), interrupted)
        self.notify(result)
        return result

    def _tuning_of(self, run: TrainingRun) -> Tuning | None:
        """Return the tuning behind a final run's rate; None for a run of the grid, or without a grid."""
        return None if run.role == "tuning" else self._tunings.get((run.model_name, self.plan.tuned_at(run)))

    def _complete(self, run: TrainingRun) -> None:
        """Train one run to its end, unless it has ended before."""
        folder = self._folder(run)
        result = self.ranks.lead(lambda: self._find_result(run, folder))
        if result is None:
            self.ranks.lead(lambda: trained.claim(folder, self.plan, run))
            with _within_memory(self.plan, run):
                result = self._train(run, folder)
        else:
            self._remaining.leave_out(self.plan.flops(run))
        self.ranks.lead(lambda: self._recorder.publish(folder))
        self._results.append(result)
        self.notify(result)

    def _find_result(self, run: TrainingRun, folder: Path) -> RunResult | None:
        """Return the result of a run that needs no training.

        Such a run has no rate, is on disk, has failed with the same code, or equals a run of the grid.
        """
        plan = self.plan
        if run.learning_rate is None:
            reason = f"no learning rate: every run of {run.model_name}'s grid at size {plan.tuned_at(run)} diverged."
            return RunResult(run, "failed", folder, 0, error=reason)
        trained.check(folder, plan, run)
        if not trained.is_done(self.out, plan, run):
            failure = self._recorder.find_failure(folder, run)
            if failure is not None:
                num_tokens = int(failure.metrics["num_tokens"].value)
                return RunResult(run, "failed", folder, num_tokens, error=failure.error, on_disk=True)
            twin = self._find_equal_run(run)
            if twin is None:
                return None
            with atomic_folder(folder) as draft:
                shutil.copytree(twin.folder, draft, dirs_exist_ok=True)
                self._recorder.adopt(draft, run, self._tuning_of(run))
        final = trained.read_final(folder)
        return RunResult(
            run,
            "ok",
            folder,
            final.num_tokens,
            final.validation_loss,
            final.tokens_per_s,
            on_disk=True,
            validation_acc=final.validation_acc,
        )

    def _find_equal_run(self, run: TrainingRun) -> RunResult | None:
        """Return the run of the grid that equals a final run: the same steps, seed and rate."""
        wanted = self.plan.fingerprint(run)
        for result in self._results:
            its = result.run
            if (
                (run.role, its.role, result.status) == ("final", "tuning", "ok")
                and (its.model_name, its.size) == (run.model_name, run.size)
                and self.plan.fingerprint(its) == wanted
            ):
                return result
        return None

    def _train(self, run: TrainingRun, folder: Path) -> RunResult:
        """Train one run to its end; its result is `failed` if it diverges."""
        plan, spec = self.plan, self.plan.spec
        batches = self.data.batches(spec, run.seed)
        trainer = Trainer(plan, run, batches, self._validation, folder, self.notify, self.ranks)
        step_flops = plan.flops(run) / run.num_steps
        self._remaining.leave_out(trainer.state.step * step_flops)
        number = [(each.name, each.role) for each in plan.runs].index((run.name, run.role)) + 1
        self.notify(RunStarted(run, number, len(plan.runs), trainer.state.step))

        def on_step(step: int, loss: float, seconds: float) -> None:
            left = self._remaining.advance(step_flops, seconds)
            self.notify(StepDone(run, step, loss, spec.tokens_per_step / seconds, left))

        try:
            trainer.train(self.stop, on_step)
        except DivergedError as error:
            self._remaining.leave_out((run.num_steps - trainer.state.step) * step_flops)
            num_tokens, reason = trainer.state.step * spec.tokens_per_step, str(error)
            self.ranks.lead(
                lambda: self._recorder.keep(folder, run, trainer, self._tuning_of(run), error=reason)
            )
            return RunResult(run, "failed", folder, num_tokens, error=reason)
        weights = full_weights(trainer.model, keep=self.ranks.leads)
        # An accuracy may have ended the run before its last step.
        self._remaining.leave_out((run.num_steps - trainer.state.step) * step_flops)
        return self.ranks.lead(lambda: self._save(run, folder, trainer, weights))

    def _save(
        self, run: TrainingRun, folder: Path, trainer: Trainer, weights: dict[str, Tensor]
    ) -> RunResult:
        """Write the record and the final checkpoint of a run, and delete its snapshots."""
        plan, state, last = self.plan, trainer.state, trainer.state.curve[-1]
        num_tokens = state.step * plan.spec.tokens_per_step
        loss, tokens_per_s = last.validation_loss_nats, num_tokens / state.total_seconds
        fingerprint = fingerprint_tensors(sorted(weights.items()))
        self._recorder.keep(folder, run, trainer, self._tuning_of(run), weights_fingerprint=fingerprint)
        described = Description(
            config=trainer.model.config,
            tokenizer=plan.text.tokenizer.name if plan.text else None,
            tokenizer_fingerprint=plan.text.tokenizer.fingerprint if plan.text else None,
            context_len=plan.spec.seq_len,
            metadata={
                "experiment": plan.experiment.name,
                "profile": plan.profile_name,
                "model_name": run.model_name,
                "size": run.size,
                "seed": run.seed,
                "learning_rate": run.learning_rate,
                "num_tokens": num_tokens,
                "corpus": plan.source.name,
                "corpus_fingerprint": plan.source.fingerprint,
                "training_fingerprint": plan.fingerprint(run),
                "validation_loss": loss,
                "tokens_per_s": tokens_per_s,
                **({} if last.validation_acc is None else {"validation_acc": last.validation_acc}),
            },
        )
        save_checkpoint(folder / FINAL, described, weights)
        shutil.rmtree(folder / trained.STEPS, ignore_errors=True)
        acc = last.validation_acc
        return RunResult(run, "ok", folder, num_tokens, loss, tokens_per_s, validation_acc=acc)
