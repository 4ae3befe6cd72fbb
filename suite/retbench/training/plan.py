"""What a training command will do: the runs of the grid, then the final runs, and what determines each of them.

Everything is settled and checked here, without torch: the models are matched at every size with the vocabulary of the
tokenizer, and a run's `fingerprint` says whether what lies on disk is what the command would train.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from retbench.architectures import costs, matching
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import ModelConfig
from retbench.config.experiment import Experiment, Profile
from retbench.config.training import RECIPES, Recipe, TrainingSpec
from retbench.data.corpora import Corpus
from retbench.data.tokenizers import Tokenizer
from retbench.errors import ConfigError
from retbench.planning import cells

Role = Literal["tuning", "final"]


@dataclass(frozen=True)
class TrainingRun:
    """One model trained once.

    Attributes:
        model_name: Its key in the experiment file.
        size: Its size.
        seed: Draws the weights and the order of the text.
        num_steps: Optimiser steps.
        role: tuning: a point of the grid of learning rates. final: what is evaluated.
        learning_rate: The highest of the schedule; None while the grid has not been run that decides it.
    """

    model_name: str
    size: str
    seed: int
    num_steps: int
    role: Role
    learning_rate: float | None

    @property
    def name(self) -> str:
        """As the run's folder is called: retnet-1m-seed0, and with the rate in the grid."""
        rate = f"-lr{self.learning_rate!r}" if self.role == "tuning" else ""
        return f"{self.model_name}-{self.size}{rate}-seed{self.seed}"

    def at(self, learning_rate: float) -> "TrainingRun":
        """The same run with its rate decided."""
        return replace(self, learning_rate=learning_rate)


@dataclass(frozen=True)
class TrainingPlan:
    """Everything a training command will do.

    Attributes:
        experiment: The experiment, with the overrides of the command line.
        profile_name: The profile chosen.
        spec: What it says of training.
        models: Full configuration by (model, size), with the tokenizer's vocabulary.
        tokenizer: Turns the corpus into tokens.
        corpus: What is learned from.
        device: torch's name.
        threads: CPU threads of a process.
        command: The command line that makes the same plan again.
        world_size: Processes that train each run together.
    """

    experiment: Experiment
    profile_name: str
    spec: TrainingSpec
    models: dict[tuple[str, str], ModelConfig]
    tokenizer: Tokenizer
    corpus: Corpus
    device: str
    threads: int
    command: str
    world_size: int = 1

    @property
    def profile(self) -> Profile:
        """The profile chosen."""
        return self.experiment.profile(self.profile_name)

    @property
    def recipe(self) -> Recipe:
        """Optimiser and schedule of every run."""
        return RECIPES[self.spec.recipe]

    @property
    def model_names(self) -> list[str]:
        """The models that are trained, in the order of the file."""
        return list(dict.fromkeys(name for name, _ in self.models))

    def entry(self, run: TrainingRun) -> ModelSpec:
        """What the experiment file says of a run's model."""
        return self.experiment.models[run.model_name]

    def config(self, run: TrainingRun) -> ModelConfig:
        """The model of a run."""
        return self.models[run.model_name, run.size]

    @property
    def tuning_runs(self) -> list[TrainingRun]:
        """The grid, equal for every model; none where it has one rate only. Models alternate."""
        spec = self.spec
        if len(spec.learning_rates) == 1:
            return []
        return [
            TrainingRun(name, size, spec.seeds_of(size)[0], spec.tuning_steps, "tuning", rate)
            for size in spec.tuned_at
            for rate in spec.learning_rates
            for name in self.model_names
        ]

    @property
    def final_runs(self) -> list[TrainingRun]:
        """What is evaluated afterwards: every model at every size with each of its seeds."""
        spec = self.spec
        rate = spec.learning_rates[0] if len(spec.learning_rates) == 1 else None
        return [
            TrainingRun(name, size, seed, spec.num_steps, "final", rate)
            for size in spec.sizes
            for seed in spec.seeds_of(size)
            for name in self.model_names
        ]

    def tuned_at(self, run: TrainingRun) -> str:
        """The size whose grid decides the rate of a final run: the largest not above its own, or else the smallest."""
        by_params = sorted(
            self.spec.tuned_at,
            key=lambda size: costs.num_params_nonembedding(self.models[run.model_name, size]),
        )
        own = costs.num_params_nonembedding(self.config(run))
        not_above = [
            size
            for size in by_params
            if costs.num_params_nonembedding(self.models[run.model_name, size]) <= own
        ]
        return not_above[-1] if not_above else by_params[0]

    def num_tokens(self, run: TrainingRun) -> int:
        """Tokens that a run learns from."""
        return run.num_steps * self.spec.tokens_per_step

    @property
    def max_packed_tokens(self) -> int | None:
        """Tokens that are packed of a data set of the hub, which may have no end: what the longest run learns from.

        None for files, of which all are packed.
        """
        if self.corpus.revision is None:
            return None
        return max(map(self.num_tokens, self.final_runs))

    def flops(self, run: TrainingRun) -> int:
        """Operations of a run's products, by which its share of the whole time is reckoned."""
        entry, spec = self.entry(run), self.spec
        step = costs.training_flops(
            self.config(run),
            spec.batch_size,
            spec.seq_len,
            cells.form_chunk(entry.backend, cells.chunk_size(entry)),
            recomputed=self.profile.activation_checkpointing,
        )
        return run.num_steps * step

    def determined_by(self, run: TrainingRun) -> dict[str, Any]:
        """All that determines a run's weights and its validation loss on one machine, as JSON has it."""
        spec, entry, most = self.spec, self.entry(run), self.max_packed_tokens
        return {
            "model": self.config(run).model_dump(mode="json"),
            "backend": entry.backend,
            "chunk_size": cells.chunk_size(entry),
            "seed": run.seed,
            "num_steps": run.num_steps,
            "learning_rate": run.learning_rate,
            "recipe": self.recipe.model_dump(mode="json", exclude={"source"}),
            "corpus": self.corpus.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            **({} if most is None else {"max_packed_tokens": most}),
            **spec.model_dump(
                mode="json",
                include={"seq_len", "batch_size", "micro_batch_size", "autocast", "validation_tokens"},
            ),
        }

    def fingerprint(self, run: TrainingRun) -> str:
        """Short hash of what determines a run."""
        text = json.dumps(self.determined_by(run), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def training_spec(experiment: Experiment, profile_name: str) -> TrainingSpec:
    """What a profile says of training; ConfigError where it says nothing."""
    spec = experiment.profile(profile_name).training
    if spec is None:
        raise ConfigError(
            f"experiment '{experiment.name}', profile '{profile_name}' trains nothing: it has no table "
            f"[profiles.{profile_name}.training]. Add one, or name an experiment that has it."
        )
    return spec


def check_shares(spec: TrainingSpec, world_size: int) -> None:
    """ConfigError where a step's sequences cannot be shared out evenly among so many processes."""
    if spec.batch_size % world_size:
        raise ConfigError(
            f"training.batch_size is {spec.batch_size}, and {world_size} processes cannot share that evenly. Make it a "
            f"multiple of {world_size}, or start another number of processes (WORLD_SIZE)."
        )


def resolve_models(
    experiment: Experiment, profile_name: str, vocab_size: int
) -> dict[tuple[str, str], ModelConfig]:
    """Every model of an experiment at every size that a profile trains, matched at each.

    A model that has a checkpoint is left out: it is measured as it is.

    Raises:
        ConfigError: a size is unknown, a model has a size of its own, a pair is not matched, or nothing is left.
    """
    spec, profile = training_spec(experiment, profile_name), experiment.profile(profile_name)
    where = f"experiment '{experiment.name}', profile '{profile_name}'"
    entries = {name: entry for name, entry in experiment.models.items() if entry.checkpoint is None}
    if not entries:
        raise ConfigError(f"{where}: every model has a checkpoint, so there is none to train. Remove one's.")
    for name, entry in entries.items():
        if entry.size is not None:
            raise ConfigError(
                f"{where}: models.{name} has the size '{entry.size}' of its own, and the sizes that are trained are "
                f"those of the training table ({', '.join(spec.sizes)}). Remove it."
            )
    models: dict[tuple[str, str], ModelConfig] = {}
    for size in spec.sizes:
        of_size = {
            name: matching.resolve_model(entry, size, vocab_size=vocab_size)
            for name, entry in entries.items()
        }
        cells.check_match(of_size, profile, where=f"{where}, size '{size}'")
        models |= {(name, size): config for name, config in of_size.items()}
    return models


def differences(ours: dict[str, Any], stored: dict[str, Any], *, apart_from: Iterable[str] = ()) -> list[str]:
    """What differs between two runs, each as 'batch_size: 8 on disk, 16 asked for'."""
    names = sorted((ours.keys() | stored.keys()) - set(apart_from))
    return [
        f"{name}: {stored.get(name)!r} on disk, {ours.get(name)!r} asked for"
        for name in names
        if ours.get(name) != stored.get(name)
    ]
