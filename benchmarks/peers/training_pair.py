"""Bar on training a pair: RetNet's tokens per second in whole steps over those of the matched Transformer."""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

from benchmarks.peers.outcomes import Limit, Outcome, error_outcome, prove, speed_outcome, worst
from benchmarks.peers.rounds import interleave
from benchmarks.peers.training import GRADIENT_LIMIT, LENGTH, gradients, training_step
from retbench.data.batches import Batches, next_tokens
from retbench.data.packing import pack
from retbench.errors import UnsupportedError
from retbench.training.loop import Stopped, Trainer
from retbench.training.plan import TrainingPlan, TrainingRun
from retbench.training.planning import make_training_plan

BAR = "training-throughput-2048"
SIZE = "3m"
"""The largest size that the experiment `quality` trains on two cores."""
BATCH_SIZE = 2
WARM, TIMED = 1, 5
"""Untimed and timed steps per round."""
OVERRIDES: tuple[str, ...] = ("training.corpus=python",)
"""Changes of the experiment's profile beside the size and the number of steps."""


class _Training:
    """A run of `retbench train`, a few steps per round; what it writes between rounds is not timed."""

    def __init__(self, plan: TrainingPlan, run: TrainingRun, batches: Batches, folder: Path) -> None:
        self.first = batches.batch(0)
        # The run has more steps than are taken, so that nothing is scored and any rows are suitable.
        self.trainer = Trainer(plan, run, batches, next_tokens(self.first), folder / run.name, lambda _: None)
        self.tokens_per_step = plan.spec.tokens_per_step

    def __call__(self) -> float:
        """Return the tokens per second of the median step of a round."""
        seconds: list[float] = []
        with suppress(Stopped):
            self.trainer.train(
                lambda: len(seconds) == WARM + TIMED, lambda step, loss, taken: seconds.append(taken)
            )
        return self.tokens_per_step / median(seconds[WARM:])

    def equality(self, reference: str) -> Outcome:
        """Compare the gradients of the first sequence with those of another backend; return the worst."""
        model, found = self.trainer.model, []
        own = model.backend
        for backend in (own, reference):
            model.set_backend(backend)
            training_step(model, model, self.first[:1])
            found.append(gradients(model))
        model.set_backend(own)
        name = f"{BAR}: equality, worst gradient of {own} = {reference}"
        return worst(
            [
                error_outcome(f"{name}, of {weight}", gradient, found[1][weight], GRADIENT_LIMIT)
                for weight, gradient in found[0].items()
            ]
        )

    @property
    def ran(self) -> str:
        """The executed form or attention kernel."""
        return self.trainer.model.executed_names


def throughput(rounds: int, limit: float) -> Iterator[Outcome]:
    """Time steps of the pair of `retbench train quality` on Python's library: forward, backward, clipping and AdamW.

    Raises:
        UnsupportedError: torch has no fused attention for the Transformer here.
    """
    with tempfile.TemporaryDirectory() as place:
        retnet, transformer = _pair(rounds, Path(place))
        proofs = [retnet.equality("parallel"), transformer.equality("reference")]
        if not (yield from prove(proofs)):
            return
        values = interleave({"ours": retnet, "theirs": transformer}, rounds)
        if transformer.ran != "sdpa:flash":
            raise UnsupportedError(
                f"{BAR}: attention ran as {transformer.ran}, which is not fused. Use a torch that fuses it on CPUs."
            )
        note = f"tokens/s, size {SIZE}; {retnet.ran} over {transformer.ran}"
        yield speed_outcome(BAR, values["ours"], values["theirs"], Limit(low=limit), note)


def _pair(rounds: int, folder: Path) -> tuple[_Training, _Training]:
    """Return RetNet and the Transformer of the experiment, each before its first step."""
    plan = _plan((1 + rounds) * (WARM + TIMED) + 1)  # `interleave` calls each side once before its rounds
    most = plan.spec.steps_of(plan.spec.sizes[0]) * plan.spec.batch_size * (plan.spec.seq_len + 1)
    assert plan.text is not None, "the pair is trained on a corpus"
    packed = pack(plan.text.corpus, "train", plan.text.tokenizer, folder, max_tokens=most)
    sides = {
        run.model_name: _Training(
            plan,
            run,
            Batches(packed, batch_size=plan.spec.batch_size, seq_len=plan.spec.seq_len, seed=run.seed),
            folder,
        )
        for run in plan.final_runs
    }
    return sides["retnet"], sides["transformer"]


def _plan(num_steps: int) -> TrainingPlan:
    """Return the experiment's plan for two cores, with one size, seed and rate and without a data folder."""
    overrides = (
        *OVERRIDES,
        f'training.sizes=["{SIZE}"]',
        "training.tuning_sizes=[]",
        "training.seeds_by_size={}",
        "training.learning_rates=[4e-3]",
        f"training.seq_len={LENGTH}",
        f"training.batch_size={BATCH_SIZE}",
        f"training.num_tokens={num_steps * BATCH_SIZE * LENGTH}",
        f"training.validate_every={num_steps}",
        f"training.checkpoint_every={num_steps}",
    )
    return make_training_plan("quality", "cpu", "cpu", overrides)
