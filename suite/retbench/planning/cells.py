"""The cells of a sweep: one model under test at one point of one workload, with every setting that affects it.

A model under test has weights that are drawn from a seed, were left by a training, or are read from a checkpoint.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import AliasChoices, Field

from retbench.architectures import matching
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import ModelConfig
from retbench.config.dtypes import Dtype
from retbench.config.evaluation import Split
from retbench.config.experiment import Experiment, Profile
from retbench.config.synthetic import LengthRecall, Mqar
from retbench.errors import ConfigError
from retbench.ops import DecodeOperators
from retbench.records.record import Point, WeightsInfo
from retbench.strict import Strict
from retbench.units import format_size
from retbench.workloads.workload import find_workload

CHECKPOINT_SIZE = "checkpoint"
"""Size of a model that is read from a checkpoint, unless the experiment gives one that is its own."""


class Settings(Strict):
    """Settings that all cells of a run share."""

    dtype: Dtype
    device: str
    """Name in torch: `cpu`, `cuda:0`."""
    threads: int
    seed: int
    warmup_s: float
    min_steps: int
    cuda_graph: bool
    compile: bool = False
    decode_operators: DecodeOperators | None = None
    activation_checkpointing: bool = False
    memory_limit_bytes: int | None = None
    """Bytes that model, state and workspace may take together; None without a limit."""


class Weights(Strict):
    """Weights on a disk, and the tokenizer that belongs to them."""

    path: Path
    info: WeightsInfo
    tokenizer: str | None = None
    tokenizer_fingerprint: str | None = None
    corpus_fingerprint: str | None = None
    """Fingerprint of the training corpus at the time of training; None where it is not known."""
    context_len: int | None = None
    """Tokens of the sequences of the training; None where it is not known."""
    runs_code: bool = False
    """True if code that comes with the weights may run."""


class ModelUnderTest(Strict):
    """A model with its weights and the form or backend that is requested for it."""

    model_name: str
    size: str
    model: ModelConfig
    backend: str
    """Name of the form or attention backend requested for prefill."""
    chunk_size: int | None
    """Chunk of the chunkwise form; None for a model that has no chunks."""
    weights: Weights | None = None
    """None: drawn from the seed of the settings."""

    @property
    def label(self) -> str:
        """Name that distinguishes it from the other models of a run."""
        seed = self.weights.info.seed if self.weights else None
        return self.model_name if seed is None else f"{self.model_name} {format_size(self.size)} seed {seed}"

    @property
    def trained_weights(self) -> Weights:
        """Its weights; ConfigError where they are random, which quality cannot be measured of."""
        if self.weights is None:
            raise ConfigError(
                f"'{self.model_name}' has random weights, whose quality means nothing. Train it (retbench train), or "
                f"give a checkpoint with --set models.{self.model_name}.checkpoint="
            )
        return self.weights


class Evaluation(Strict):
    """Evaluation inputs of a cell that measures quality, in addition to its point."""

    split: Split | None = None
    limit: int | None = None
    max_document_tokens: int | None = None
    fewshot_seed: int | None = None
    """Seed of the few-shot examples, as the experiment file has it."""
    add_bos: bool | None = None
    """Set for zero-shot tasks only; a perplexity is always computed after a first-token mark."""
    tokenizer: str
    tokenizer_fingerprint: str
    corpus_fingerprint: str | None = None


class SlicedText(Evaluation):
    """Evaluation inputs of a cell that measures the loss on words that complete a rare pair."""

    counted_in: str | None
    """Corpus in which pairs are counted; None for the other documents."""
    counted_in_fingerprint: str | None
    max_count: int


class NeedleInputs(Evaluation):
    """Evaluation inputs of a cell that hides needles; its limit is the number of prompts at each depth."""

    num_depths: int


class GeneratedInputs(Strict):
    """Evaluation inputs of a cell that measures quality on a synthetic task."""

    examples: Mqar | LengthRecall = Field(discriminator="name")
    limit: int
    """Number of examples."""


AnyInputs = Evaluation | SlicedText | NeedleInputs | GeneratedInputs

Inputs = dict[tuple[str, str], AnyInputs]
"""Evaluation inputs of one workload, by the label of the model and the task of the point."""


class Cell(Strict):
    """One model under test at one point of one workload."""

    under_test: ModelUnderTest = Field(
        validation_alias=AliasChoices("under_test", "subject"), serialization_alias="subject"
    )
    """The model; `subject` in the messages of workers and in the hash that is `cell_id`, which must not change."""
    workload: str
    point: Point
    settings: Settings
    evaluation: AnyInputs | None = None
    """None for a workload that measures cost."""

    @property
    def cell_id(self) -> str:
        """Hash of every field except the path and the trained length of the weights.

        Other models of the experiment are not in it.
        """
        fields = self.model_dump(mode="json", by_alias=True)
        # Absent where it is not set, as in the ids of earlier records.
        if fields["settings"]["decode_operators"] is None:
            del fields["settings"]["decode_operators"]
        if fields["point"]["num_pairs"] is None:
            del fields["point"]["num_pairs"]
        if weights := fields["subject"]["weights"]:
            del weights["path"], weights["context_len"]  # the fingerprint of the weights covers it
            if not weights["runs_code"]:
                del weights["runs_code"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def model_name(self) -> str:
        """Key of the model in the experiment file."""
        return self.under_test.model_name

    @property
    def model(self) -> ModelConfig:
        """Configuration of the model."""
        return self.under_test.model

    @property
    def backend(self) -> str:
        """Name of the requested form or backend."""
        return self.under_test.backend

    @property
    def chunk_size(self) -> int | None:
        """Chunk of the chunkwise form."""
        return self.under_test.chunk_size


def expand(
    experiment: Experiment,
    profile_name: str,
    settings: Settings,
    *,
    models: Sequence[ModelUnderTest] | None = None,
    inputs: Mapping[str, Inputs] | None = None,
) -> list[Cell]:
    """Return every cell of one profile: models outermost, workloads in the order of lists.

    Args:
        experiment: The experiment.
        profile_name: One of its profiles.
        settings: Settings that all cells share.
        models: The models under test; the models with weights drawn from the seed when None.
        inputs: Evaluation inputs by workload. A model has no cells of a workload that needs inputs and lacks them.

    Raises:
        ConfigError: the models do not resolve, or are not matched.
    """
    found: list[Cell] = []
    entries = experiment.of_profile(profile_name).models
    for model in seeded_models(experiment, profile_name) if models is None else models:
        for name, spec in experiment.profile(profile_name).workloads.specs.items():
            measured_by = entries[model.model_name].workloads
            if measured_by is not None and name not in measured_by:
                continue
            needs_inputs = find_workload(name).find_inputs is not None
            known = (inputs or {}).get(name, {})
            for point in spec.points():
                evaluation = known.get((model.label, point.task or "")) if needs_inputs else None
                if evaluation is not None or not needs_inputs:
                    cell = Cell(
                        under_test=model, workload=name, point=point, settings=settings, evaluation=evaluation
                    )
                    found.append(cell)
    return found


def seeded_models(experiment: Experiment, profile_name: str) -> list[ModelUnderTest]:
    """Return the matched models of one profile, with weights drawn from its seed.

    Raises:
        ConfigError: the models do not resolve, or are not matched.
    """
    experiment = experiment.of_profile(profile_name)
    profile = experiment.profile(profile_name)
    models = resolve_models(experiment, profile_name)
    return [
        model_under_test(name, spec, spec.size or profile.size, models[name])
        for name, spec in experiment.models.items()
    ]


def model_under_test(
    name: str, spec: ModelSpec, size: str, model: ModelConfig, weights: Weights | None = None
) -> ModelUnderTest:
    """Make a model under test of an entry of `[models]`."""
    return ModelUnderTest(
        model_name=name,
        size=size,
        model=model,
        backend=spec.backend,
        chunk_size=model.chunk_size(spec.backend, spec.chunk_size),
        weights=weights,
    )


def resolve_models(experiment: Experiment, profile_name: str) -> dict[str, ModelConfig]:
    """Return the matched configurations of an experiment's models in one profile.

    Raises:
        ConfigError: they do not resolve, or are not matched.
    """
    experiment = experiment.of_profile(profile_name)
    profile = experiment.profile(profile_name)
    models = {name: matching.resolve_model(spec, profile.size) for name, spec in experiment.models.items()}
    check_match(
        models, experiment, profile, where=f"experiment '{experiment.name}', profile '{profile_name}'"
    )
    return models


def check_match(
    models: Mapping[str, ModelConfig], experiment: Experiment, profile: Profile, *, where: str
) -> None:
    """Refuse models that are not matched with each other, where the profile does not allow a mismatch.

    A model of another library is never matched, and it is not compared.
    """
    matched = {name: model for name, model in models.items() if model.whole_model is None}
    if len(matched) > 1:
        remedy = matching.mismatch_remedy((experiment.models[name] for name in matched), profile.size)
        matching.match_models(matched, allow_mismatch=profile.allow_mismatch, where=where, remedy=remedy)
