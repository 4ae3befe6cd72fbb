"""The plan of a training command: the runs of the grid, then the final runs, and everything that determines them.

The plan is made and checked without torch. The models are matched at every size with the vocabulary of the tokenizer
or of the synthetic task.
A run's `fingerprint` identifies its settings, so that a run on disk is reused only if they are the same.
"""

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from retbench.architectures import costs, matching
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import Initialisation, ModelConfig, reading_backend
from retbench.config.experiment import Experiment, Profile
from retbench.config.synthetic import TaskSpec
from retbench.config.training import RECIPES, Recipe, TrainingSpec
from retbench.data.corpora import Corpus
from retbench.data.tokenizers import Tokenizer, has_own_begin
from retbench.errors import ConfigError
from retbench.planning import cells
from retbench.planning.shards import Shard

Role = Literal["tuning", "final"]


@dataclass(frozen=True)
class TrainingRun:
    """One training of one model.

    Attributes:
        model_name: Key of the model in the experiment file.
        seed: Seed of the weights and of the order of the text.
        role: `tuning` for a point of the grid of learning rates, `final` for a model that is evaluated.
        learning_rate: Highest rate of the schedule; None until the grid has decided it.
    """

    model_name: str
    size: str
    seed: int
    num_steps: int
    role: Role
    learning_rate: float | None

    @property
    def name(self) -> str:
        """Name of the run's folder: retnet-1m-seed0, or with the rate for a run of the grid."""
        rate = f"-lr{self.learning_rate!r}" if self.role == "tuning" else ""
        return f"{self.model_name}-{self.size}{rate}-seed{self.seed}"


@dataclass(frozen=True)
class TextSource:
    """A corpus to train on, and the tokenizer that its text is read with."""

    corpus: Corpus
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        """Name of the corpus."""
        return self.corpus.name

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the corpus."""
        return self.corpus.fingerprint

    @property
    def vocab_size(self) -> int:
        """Tokens of the tokenizer."""
        return self.tokenizer.vocab_size


@dataclass(frozen=True)
class TrainingPlan:
    """All runs of a training command.

    Attributes:
        experiment: The experiment, with the overrides of the command line.
        spec: The profile's training table.
        models: Full configuration by (model, size), with the vocabulary of the tokenizer or task.
        source: What the models are trained on: a text or a synthetic task.
        device: torch's name of the device.
        threads: CPU threads per process.
        command: Command line that makes the same plan again.
        world_size: Number of processes that train each run together.
        local_world_size: Number of them on this machine.
        shard: The part of the runs that is trained; all when None. `unit_of` says what stays in one part.
    """

    experiment: Experiment
    profile_name: str
    spec: TrainingSpec
    models: dict[tuple[str, str], ModelConfig]
    source: TextSource | TaskSpec
    device: str
    threads: int
    command: str
    world_size: int = 1
    local_world_size: int = 1
    shard: Shard | None = None

    @property
    def profile(self) -> Profile:
        """The chosen profile."""
        return self.experiment.profile(self.profile_name)

    @property
    def recipe(self) -> Recipe:
        """Optimiser and schedule, the same for every run."""
        return RECIPES[self.spec.recipe]

    @property
    def text(self) -> TextSource | None:
        """The corpus and its tokenizer; None if the models are trained on a task."""
        return self.source if isinstance(self.source, TextSource) else None

    @property
    def model_names(self) -> list[str]:
        """Names of the trained models, in the order of the file."""
        return list(dict.fromkeys(name for name, _ in self.models))

    def entry(self, run: TrainingRun) -> ModelSpec:
        """Return the experiment file's entry for a run's model."""
        return self.experiment.models[run.model_name]

    def config(self, run: TrainingRun) -> ModelConfig:
        """Return the configuration of a run's model."""
        return self.models[run.model_name, run.size]

    @property
    def runs(self) -> list[TrainingRun]:
        """All runs, in the order of training."""
        return [*self.tuning_runs, *self.final_runs]

    @property
    def tuning_runs(self) -> list[TrainingRun]:
        """Runs of the grid, the same for every model, alternating between models; none if it has a single rate."""
        spec = self.spec
        if not self.has_grid:
            return []
        runs = [
            TrainingRun(name, size, spec.seeds_of(size)[0], spec.tuning_steps, "tuning", rate)
            for size in spec.tuned_at
            for rate in spec.learning_rates
            for name in self.model_names
        ]
        return self._of_shard(runs)

    @property
    def final_runs(self) -> list[TrainingRun]:
        """Runs that are evaluated afterwards: every model at every size with each of its seeds."""
        spec = self.spec
        rate = None if self.has_grid else spec.learning_rates[0]
        runs = [
            TrainingRun(name, size, seed, spec.steps_of(size), "final", rate)
            for size in spec.sizes
            for seed in spec.seeds_of(size)
            for name in self.model_names
        ]
        return self._of_shard(runs)

    @property
    def has_grid(self) -> bool:
        """True if each model takes the best of several learning rates."""
        return self.spec.has_grid

    @property
    def ends_early(self) -> bool:
        """True if a run ends where it is scored with an accuracy."""
        task = self.spec.task
        return task is not None and task.stop_accuracy is not None

    def unit_of(self, run: TrainingRun) -> Hashable:
        """Return what stays in one shard with a run: its model if that is tuned on a grid, else its size and seed.

        The final runs of a model wait for its own grid only.
        """
        return run.model_name if self.has_grid else (run.size, run.seed)

    def _of_shard(self, runs: Sequence[TrainingRun]) -> list[TrainingRun]:
        return list(runs) if self.shard is None else self.shard.part_of(runs, self.unit_of)

    def tuned_at(self, run: TrainingRun) -> str:
        """Return the size whose grid decides a final run's rate: the largest not above its own, or the smallest."""
        num_params = {
            size: costs.num_params_nonembedding(self.models[run.model_name, size])
            for size in (*self.spec.tuned_at, run.size)
        }
        by_params = sorted(self.spec.tuned_at, key=num_params.__getitem__)
        not_above = [size for size in by_params if num_params[size] <= num_params[run.size]]
        return not_above[-1] if not_above else by_params[0]

    def num_tokens(self, run: TrainingRun) -> int:
        """Return the number of training tokens of a run that no accuracy ends early."""
        return run.num_steps * self.spec.tokens_per_step

    @property
    def max_packed_tokens(self) -> int | None:
        """Number of tokens to pack of a hub data set, which may be endless: the rows of the longest final run.

        None for files, which are packed whole, and for a task.
        """
        if self.text is None or self.text.corpus.revision is None:
            return None
        num_rows = max(map(self.spec.steps_of, self.spec.sizes)) * self.spec.batch_size
        return num_rows * (self.spec.seq_len + 1)  # the last token of a row is predicted only

    def flops(self, run: TrainingRun) -> int:
        """Return the FLOPs of a run's matrix products, from which its share of the total time is estimated."""
        entry, spec = self.entry(run), self.spec
        step = costs.training_flops(
            self.config(run),
            spec.batch_size,
            spec.seq_len,
            entry.backend,
            entry.chunk_size,
            recomputed=self.profile.activation_checkpointing,
        )
        return run.num_steps * step

    def initialisation(self, run: TrainingRun) -> Initialisation:
        """Return how the weights of a run start; plain for every model without another published initialisation."""
        return self.spec.initialisation if self.config(run).has_published_init else "plain"

    def determined_by(self, run: TrainingRun) -> dict[str, Any]:
        """Return everything that determines a run's weights and validation loss on one machine, as JSON values."""
        spec, entry, most = self.spec, self.entry(run), self.max_packed_tokens
        return {
            "model": self.config(run).model_dump(mode="json"),
            "backend": reading_backend(self.config(run), entry.backend),
            "chunk_size": self.config(run).chunk_size(entry.backend, entry.chunk_size),
            "seed": run.seed,
            "num_steps": run.num_steps,
            "learning_rate": run.learning_rate,
            "recipe": self.recipe.model_dump(mode="json", exclude={"source"}),
            **self._determined_by_source(),
            **({} if most is None else {"max_packed_tokens": most}),
            **({"compile": True} if spec.compile else {}),
            **(
                {}
                if (initialisation := self.initialisation(run)) == "plain"
                else {"initialisation": initialisation}
            ),
            **spec.model_dump(
                mode="json",
                include={"seq_len", "batch_size", "micro_batch_size", "autocast", "validation_tokens"},
            ),
        }

    def _determined_by_source(self) -> dict[str, Any]:
        if isinstance(self.source, TaskSpec):
            return {"task": {**self.source.model_dump(mode="json"), "fingerprint": self.source.fingerprint}}
        begins = {"begins_with_bos": True} if has_own_begin(self.source.tokenizer) else {}
        return {"corpus": self.source.fingerprint, "tokenizer": self.source.tokenizer.fingerprint, **begins}

    def fingerprint(self, run: TrainingRun) -> str:
        """Return a short hash of everything that determines a run."""
        text = json.dumps(self.determined_by(run), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def training_spec(experiment: Experiment, profile_name: str) -> TrainingSpec:
    """Return a profile's training table; ConfigError if it has none."""
    spec = experiment.profile(profile_name).training
    if spec is None:
        raise ConfigError(
            f"experiment '{experiment.name}', profile '{profile_name}' trains nothing: it has no table "
            f"[profiles.{profile_name}.training]. Add one, or name an experiment that has it."
        )
    return spec


def check_processes(spec: TrainingSpec, world_size: int) -> None:
    """Raise a ConfigError if the processes cannot share the batch evenly, or cannot train compiled models together."""
    if spec.compile and world_size > 1:
        raise ConfigError(
            f"training.compile is true, and models that {world_size} processes share are not compiled. Give "
            "--set training.compile=false, or start one process and train parts of the runs with --shard."
        )
    if spec.batch_size % world_size:
        raise ConfigError(
            f"training.batch_size is {spec.batch_size}, and {world_size} processes cannot share it evenly. Make it a "
            f"multiple of {world_size}, or start another number of processes (WORLD_SIZE)."
        )


def resolve_models(
    experiment: Experiment, profile_name: str, vocab_size: int
) -> dict[tuple[str, str], ModelConfig]:
    """Return the matched configuration of every model without a checkpoint, by (model, size) of a profile's training.

    Raises:
        ConfigError: a size is unknown, a model sets its own size, the models are not matched, or none is left.
    """
    experiment = experiment.of_profile(profile_name)
    spec, profile = training_spec(experiment, profile_name), experiment.profile(profile_name)
    where = f"experiment '{experiment.name}', profile '{profile_name}'"
    entries = {name: entry for name, entry in experiment.models.items() if entry.checkpoint is None}
    if not entries:
        raise ConfigError(
            f"{where}: every model has a checkpoint, so there is none to train. Remove a checkpoint."
        )
    for name, entry in entries.items():
        if entry.size is not None:
            raise ConfigError(
                f"{where}: models.{name} has the size '{entry.size}' of its own, and the sizes to train are "
                f"those of the training table ({', '.join(spec.sizes)}). Remove it."
            )
    models: dict[tuple[str, str], ModelConfig] = {}
    for size in spec.sizes:
        of_size = {
            name: matching.resolve_model(entry, size, vocab_size=vocab_size)
            for name, entry in entries.items()
        }
        cells.check_match(of_size, experiment, profile, where=f"{where}, size '{size}'")
        models |= {(name, size): config for name, config in of_size.items()}
    return models
