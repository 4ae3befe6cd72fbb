"""Carries out a training plan: the grid, each model's best rate, the final runs; one after the other.

A run that diverges costs itself alone. What is on disk already is not trained again, nor what diverged with the same
code, so that the same command goes on where the last one stopped, whatever ended it.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from retbench.checkpoints.fingerprints import fingerprint_tensors
from retbench.checkpoints.reading import FINAL, read_checkpoint
from retbench.checkpoints.saving import save_weights
from retbench.data.batches import Batches
from retbench.data.packing import PackedTokens
from retbench.errors import DivergedError
from retbench.files import atomic_folder
from retbench.training import trained
from retbench.training.events import (
    Finished,
    Planned,
    RunEnded,
    RunResult,
    RunStarted,
    StepDone,
    Tell,
    TrainingResult,
    Tuned,
    Tuning,
)
from retbench.training.loop import Stopped, Trainer
from retbench.training.losses import validation_rows
from retbench.training.pace import Pace
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.training.ranks import ALONE, Ranks
from retbench.training.recording import Recorder
from retbench.training.sharding import whole_weights
from retbench.training.trained import RUN, STEPS
from retbench.training.tuning import best_rates


@dataclass(frozen=True)
class TrainingText:
    """The corpus as tokens: what is learned from, and what is scored."""

    train: PackedTokens
    validation: PackedTokens


def train_all(
    plan: TrainingPlan,
    text: TrainingText,
    out: Path,
    *,
    tell: Tell,
    stop: Callable[[], bool],
    ranks: Ranks = ALONE,
) -> TrainingResult:
    """Train every run of a plan that is not on disk yet.

    Args:
        plan: What to train.
        text: The tokens of its corpus.
        out: Root of the results; see `trained` for where runs lie below it.
        tell: Receives the events.
        stop: Asked between steps whether to stop.
        ranks: The processes that train each run together; all of them call this, with one folder for all.

    Raises:
        ConfigError: a folder holds a run that something else determined; nothing was trained.
        StorageError: something could not be written; what is on disk is intact, and the same command goes on.
    """
    ranks.lead(lambda: _check_folders(plan, out))
    return _Engine(plan, text, out, tell, stop, ranks).train_all()


def _check_folders(plan: TrainingPlan, out: Path) -> None:
    """ConfigError where a folder holds a run that something else determined."""
    for run in [*plan.tuning_runs, *plan.final_runs]:
        trained.check(trained.run_folder(out, plan, run), plan, run)


def delete_runs(plan: TrainingPlan, out: Path) -> None:
    """Delete every run of a plan from the disk, so that all are trained anew."""
    for run in [*plan.tuning_runs, *plan.final_runs]:
        folder = trained.run_folder(out, plan, run)
        if (folder / RUN).is_file():
            shutil.rmtree(folder)


class _Engine:
    """The runs of a plan, one after the other.

    What depends on the disk is decided by the first process; all follow the same runs.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        text: TrainingText,
        out: Path,
        tell: Tell,
        stop: Callable[[], bool],
        ranks: Ranks,
    ) -> None:
        self._plan, self._text, self._out = plan, text, out
        self._tell, self._stop, self._ranks = tell, stop, ranks
        self._runs = [*plan.tuning_runs, *plan.final_runs]
        self._pace = Pace(sum(plan.flops(run) for run in self._runs))
        self._results: list[RunResult] = []
        self._tunings: dict[tuple[str, str], Tuning] = {}
        self._recorder: Recorder  # of the first process, which alone has one
        ranks.lead(self._open_records)
        self._validation: Tensor = validation_rows(
            text.validation, plan.spec.validation_tokens, plan.spec.seq_len
        )

    def _open_records(self) -> None:
        self._recorder = Recorder(self._plan, self._out)

    def train_all(self) -> TrainingResult:
        """The grid, then the final runs."""
        done = self._ranks.lead(lambda: sum(self._is_done(run) for run in self._runs))
        self._tell(Planned(len(self._runs), done))
        interrupted = False
        try:
            for run in self._plan.tuning_runs:
                self._settle(run)
            self._decide_rates()
            for run in self._plan.final_runs:
                self._settle(self._with_rate(run))
        except Stopped:
            interrupted = True
        result = TrainingResult(tuple(self._results), tuple(self._tunings.values()), interrupted)
        self._tell(Finished(result))
        return result

    def _is_done(self, run: TrainingRun) -> bool:
        """Whether a run has its final checkpoint."""
        return trained.is_done(self._out, self._plan, run)

    def _decide_rates(self) -> None:
        """Give each model the best rate of its own grid."""
        self._tunings = best_rates(self._plan, self._results)
        for tuning in self._tunings.values():
            self._tell(Tuned(tuning))

    def _with_rate(self, run: TrainingRun) -> TrainingRun:
        """A final run with the rate of its model's grid, where that came to one."""
        if run.learning_rate is not None:
            return run
        tuning = self._tuning_of(run)
        return run if tuning is None else run.at(tuning.learning_rate)

    def _tuning_of(self, run: TrainingRun) -> Tuning | None:
        """What a final run's rate came from; None for a run of the grid, and where there is no grid."""
        return None if run.role == "tuning" else self._tunings.get((run.model_name, self._plan.tuned_at(run)))

    def _settle(self, run: TrainingRun) -> None:
        """Bring one run to its end, unless it is there already."""
        folder = trained.run_folder(self._out, self._plan, run)
        result = self._ranks.lead(lambda: self._settled_before(run, folder))
        if result is None:
            self._ranks.lead(lambda: trained.claim(folder, self._plan, run))
            result = self._train(run, folder)
        else:
            self._pace.leave_out(self._plan.flops(run))
        self._ranks.lead(lambda: self._recorder.publish(folder))
        self._results.append(result)
        self._tell(RunEnded(result))

    def _settled_before(self, run: TrainingRun, folder: Path) -> RunResult | None:
        """The result of a run that needs no training: it has no rate, is on disk, has failed, or is one of the grid."""
        if run.learning_rate is None:
            size = self._plan.tuned_at(run)
            reason = f"no learning rate: every run of {run.model_name}'s grid at size {size} diverged."
            return RunResult(run, "failed", folder, 0, error=reason)
        trained.check(folder, self._plan, run)
        if not self._is_done(run):
            failure = self._recorder.find_failure(folder, run)
            if failure is not None:
                num_tokens = int(failure.metrics["num_tokens"].value)
                return RunResult(run, "failed", folder, num_tokens, error=failure.error, on_disk=True)
            twin = self._twin_of(run)
            if twin is None:
                return None
            with atomic_folder(folder) as draft:
                shutil.copytree(twin.folder, draft, dirs_exist_ok=True)
                self._recorder.adopt(draft, run, self._tuning_of(run))
        told = read_checkpoint(str(folder / FINAL)).metadata
        return RunResult(
            run,
            "ok",
            folder,
            self._plan.num_tokens(run),
            validation_loss=told["validation_loss"],
            tokens_per_s=told["tokens_per_s"],
            on_disk=True,
        )

    def _twin_of(self, run: TrainingRun) -> RunResult | None:
        """A run of the grid that is the same training as a final run: as long, of the same seed and rate."""
        if run.role == "tuning":
            return None
        wanted = self._plan.fingerprint(run)
        return next(
            (
                result
                for result in self._results
                if result.run.role == "tuning"
                and result.status == "ok"
                and (result.run.model_name, result.run.size) == (run.model_name, run.size)
                and self._plan.fingerprint(result.run) == wanted
            ),
            None,
        )

    def _train(self, run: TrainingRun, folder: Path) -> RunResult:
        """Train one run to its end; failed where it diverges."""
        plan = self._plan
        batches = Batches(
            self._text.train, batch_size=plan.spec.batch_size, seq_len=plan.spec.seq_len, seed=run.seed
        )
        trainer = Trainer(plan, run, batches, self._validation, folder, self._tell, self._ranks)
        step_flops = plan.flops(run) / run.num_steps
        self._pace.leave_out(trainer.place.step * step_flops)
        number = self._runs.index(
            next(each for each in self._runs if each.name == run.name and each.role == run.role)
        )
        self._tell(RunStarted(run, number + 1, len(self._runs), trainer.place.step))

        def on_step(step: int, loss: float, seconds: float) -> None:
            left = self._pace.advance(step_flops)
            self._tell(StepDone(run, step, loss, plan.spec.tokens_per_step / seconds, left))

        try:
            trainer.train(self._stop, on_step)
        except DivergedError as error:
            self._pace.leave_out((run.num_steps - trainer.place.step) * step_flops)
            num_tokens, reason = trainer.place.step * plan.spec.tokens_per_step, str(error)
            self._ranks.lead(
                lambda: self._recorder.keep(folder, run, trainer, self._tuning_of(run), error=reason)
            )
            return RunResult(run, "failed", folder, num_tokens, error=reason)
        weights = whole_weights(trainer.model, keep=self._ranks.leads)
        return self._ranks.lead(lambda: self._conclude(run, folder, trainer, weights))

    def _conclude(
        self, run: TrainingRun, folder: Path, trainer: Trainer, weights: dict[str, Tensor]
    ) -> RunResult:
        """Write the checkpoint of a run that is over; its snapshots are no longer needed."""
        plan, place = self._plan, trainer.place
        num_tokens = plan.num_tokens(run)
        told = {
            "experiment": plan.experiment.name,
            "profile": plan.profile_name,
            "model_name": run.model_name,
            "size": run.size,
            "seed": run.seed,
            "learning_rate": run.learning_rate,
            "num_tokens": num_tokens,
            "corpus": plan.corpus.name,
            "corpus_fingerprint": plan.corpus.fingerprint,
            "training_fingerprint": plan.fingerprint(run),
            "validation_loss": place.curve[-1].validation_loss_nats,
            "tokens_per_s": num_tokens / place.total_seconds,
        }
        self._recorder.keep(
            folder,
            run,
            trainer,
            self._tuning_of(run),
            weights_fingerprint=fingerprint_tensors(sorted(weights.items())),
        )
        save_weights(
            folder / FINAL,
            trainer.model.config,
            weights,
            tokenizer=plan.tokenizer.name,
            tokenizer_fingerprint=plan.tokenizer.fingerprint,
            context_len=plan.spec.seq_len,
            metadata=told,
        )
        shutil.rmtree(folder / STEPS, ignore_errors=True)
        return RunResult(
            run,
            "ok",
            folder,
            num_tokens,
            validation_loss=place.curve[-1].validation_loss_nats,
            tokens_per_s=num_tokens / place.total_seconds,
        )
