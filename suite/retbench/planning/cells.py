"""The cells of a sweep: one subject at one point of one workload, with every setting that could move it.

A subject is a model with its weights: drawn from a seed, left by a training, or read from a checkpoint.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from retbench.architectures import matching
from retbench.architectures.architecture import ModelSpec
from retbench.architectures.configs import ModelConfig
from retbench.config.evaluation import PerplexitySpec, Split, ZeroshotSpec
from retbench.config.experiment import Dtype, Experiment, Profile
from retbench.records.record import Point, WeightsInfo
from retbench.strict import Strict


class Settings(Strict):
    """What is the same for every cell of a run."""

    dtype: Dtype
    device: str
    """torch's name: `cpu`, `cuda:0`."""
    threads: int
    seed: int
    warmup_s: float
    min_steps: int
    cuda_graph: bool
    compile: bool = False
    activation_checkpointing: bool = False
    memory_limit_bytes: int | None = None
    """Bytes that model, state and workspace may take together; None for all there is."""


class Weights(Strict):
    """Weights that lie on a disk, and the tokenizer that goes with them."""

    path: Path
    info: WeightsInfo
    tokenizer: str | None = None
    tokenizer_fingerprint: str | None = None
    corpus_fingerprint: str | None = None
    """Of the corpus that they were trained on, as it was then; None where that is not known."""


class Subject(Strict):
    """A model with its weights and the form or backend that it is asked to run with."""

    model_name: str
    size: str
    model: ModelConfig
    backend: str
    """Name of the retention form or attention backend that prefill is asked to use."""
    chunk_size: int | None
    """Chunk of the chunkwise form; None for a model that has no chunks."""
    weights: Weights | None = None
    """None: drawn from the seed of the settings."""

    @property
    def label(self) -> str:
        """What tells it from the other subjects of a run."""
        seed = self.weights.info.seed if self.weights else None
        return self.model_name if seed is None else f"{self.model_name} {self.size} seed {seed}"


class Evaluation(Strict):
    """What a cell of quality depends on beside its point."""

    split: Split | None = None
    limit: int | None = None
    max_document_tokens: int | None = None
    fewshot_seed: int | None = None
    """Of zero-shot tasks, as the file has it."""
    add_bos: bool | None = None
    """Of zero-shot tasks; None elsewhere, where every text is read after a mark."""
    tokenizer: str
    tokenizer_fingerprint: str
    corpus_fingerprint: str | None = None


class Cell(Strict):
    """One subject at one point of one workload."""

    subject: Subject
    workload: str
    point: Point
    settings: Settings
    evaluation: Evaluation | None = None
    """None for a workload that measures cost."""

    @property
    def cell_id(self) -> str:
        """Hash of every field but the place where weights lie."""
        fields = self.model_dump(mode="json")
        if fields["subject"]["weights"]:
            del fields["subject"]["weights"]["path"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def model_name(self) -> str:
        """The model's key in the experiment file."""
        return self.subject.model_name

    @property
    def model(self) -> ModelConfig:
        """The model's configuration."""
        return self.subject.model

    @property
    def backend(self) -> str:
        """Name of the form or backend asked for."""
        return self.subject.backend

    @property
    def chunk_size(self) -> int | None:
        """Chunk of the chunkwise form."""
        return self.subject.chunk_size


def expand(
    experiment: Experiment,
    profile_name: str,
    settings: Settings,
    *,
    subjects: Sequence[Subject] | None = None,
    evaluations: Mapping[tuple[str, str | None], Evaluation] | None = None,
) -> list[Cell]:
    """Every cell of one profile, subjects outermost, in the order of the file.

    Args:
        experiment: The experiment.
        profile_name: One of its profiles.
        settings: What is the same for every cell.
        subjects: What is measured; the models with weights drawn from the seed when None.
        evaluations: What cells of quality depend on, by the label of their subject and their corpus, or None for
            zero-shot tasks; a subject has no cells of those that are missing.

    Raises:
        ConfigError: the models do not resolve, or are not matched.
    """
    profile = experiment.profile(profile_name)
    if subjects is None:
        subjects = seeded_subjects(experiment, profile_name)
    found: list[Cell] = []
    for subject in subjects:
        for workload, grid in profile.workloads.grids.items():
            found += [
                Cell(
                    subject=subject,
                    workload=workload,
                    point=Point(batch_size=batch_size, context_len=context_len),
                    settings=settings,
                )
                for batch_size in grid.batch_size
                for context_len in grid.context_len
            ]
        for workload, point, evaluation in _questions(subject, profile, evaluations or {}):
            found.append(
                Cell(
                    subject=subject, workload=workload, point=point, settings=settings, evaluation=evaluation
                )
            )
    return found


def _questions(
    subject: Subject, profile: Profile, evaluations: Mapping[tuple[str, str | None], Evaluation]
) -> Iterator[tuple[str, Point, Evaluation]]:
    """Workload, point and evaluation of each cell of quality of a subject."""
    perplexity, zeroshot = profile.workloads.perplexity, profile.workloads.zeroshot
    if perplexity:
        for corpus in perplexity.corpora:
            if evaluation := evaluations.get((subject.label, corpus)):
                for point in _readings(perplexity, corpus):
                    yield "perplexity", point, evaluation
    if zeroshot and (evaluation := evaluations.get((subject.label, None))):
        for point in _exams(zeroshot):
            yield "zeroshot", point, evaluation


def _readings(spec: PerplexitySpec, corpus: str) -> Iterator[Point]:
    """Points of a corpus."""
    for protocol, lengths in spec.protocols.items():
        for context_len in lengths:
            yield Point(
                batch_size=1,
                context_len=context_len,
                task=corpus,
                protocol=protocol,
                stride=spec.stride_of(context_len) if protocol == "strided" else None,
            )


def _exams(spec: ZeroshotSpec) -> Iterator[Point]:
    """Points of the tasks."""
    for task in spec.tasks:
        for num_fewshot in spec.num_fewshot:
            yield Point(batch_size=1, context_len=spec.context_len, task=task, num_fewshot=num_fewshot)


def seeded_subjects(experiment: Experiment, profile_name: str) -> list[Subject]:
    """The matched models of one profile, with weights drawn from its seed.

    Raises:
        ConfigError: the models do not resolve, or are not matched.
    """
    profile = experiment.profile(profile_name)
    models = resolve_models(experiment, profile_name)
    return [
        make_subject(name, spec, spec.size or profile.size, models[name])
        for name, spec in experiment.models.items()
    ]


def make_subject(
    name: str, spec: ModelSpec, size: str, model: ModelConfig, weights: Weights | None = None
) -> Subject:
    """The subject of an entry of `[models]`."""
    return Subject(
        model_name=name,
        size=size,
        model=model,
        backend=spec.backend,
        chunk_size=model.chunk_size(spec.backend, spec.chunk_size),
        weights=weights,
    )


def resolve_models(
    experiment: Experiment, profile_name: str, size: str | None = None, *, vocab_size: int | None = None
) -> dict[str, ModelConfig]:
    """The matched configurations of an experiment's models in one profile.

    Args:
        experiment: The experiment.
        profile_name: One of its profiles.
        size: The profile's when None.
        vocab_size: The size's when None.

    Raises:
        ConfigError: they do not resolve, or are not matched.
    """
    profile = experiment.profile(profile_name)
    models = {
        name: matching.resolve_model(spec, size or profile.size, vocab_size=vocab_size)
        for name, spec in experiment.models.items()
    }
    check_match(models, profile, where=f"experiment '{experiment.name}', profile '{profile_name}'")
    return models


def check_match(models: Mapping[str, ModelConfig], profile: Profile, *, where: str) -> None:
    """ConfigError where models that stand beside each other are not matched and the profile does not allow it."""
    if len(models) > 1:
        matching.match_models(dict(models), allow_mismatch=profile.allow_mismatch, where=where)


def pair_id(models: Mapping[str, ModelConfig]) -> str:
    """Hash of the models that stand beside each other: cells with one pair_id were matched with each other."""
    text = "\n".join(f"{name}={config.model_dump_json()}" for name, config in sorted(models.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def pair_ids(subjects: Sequence[Subject]) -> dict[str, str]:
    """The pair_id of each model of a run, by its fingerprint; what was trained at one size is a pair of its own."""
    groups: dict[str, dict[str, ModelConfig]] = {}
    for subject in subjects:
        trained = subject.weights is not None and subject.weights.info.seed is not None
        groups.setdefault(subject.size if trained else "", {})[subject.model_name] = subject.model
    return {model.fingerprint: pair_id(models) for models in groups.values() for model in models.values()}
