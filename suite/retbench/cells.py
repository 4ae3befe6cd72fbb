"""The cells of a sweep: one model at one point of one workload, with every setting that could move it."""

import hashlib
from typing import Annotated

from pydantic import Field

from retbench import matching
from retbench.architectures import ModelConfig
from retbench.config import FLA_CHUNK_SIZE, Dtype, Experiment, ModelSpec, RetNetSpec
from retbench.records import Point
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


class Cell(Strict):
    """One model at one point of one workload."""

    model_name: str
    size: str
    model: Annotated[ModelConfig, Field(discriminator="architecture")]
    backend: str
    """Name of the retention form or attention backend that prefill is asked to use."""
    chunk_size: int | None
    """Chunk of the chunkwise form; None for a model that has no chunks."""
    workload: str
    point: Point
    settings: Settings

    @property
    def cell_id(self) -> str:
        """Hash of every field."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def expand(experiment: Experiment, profile_name: str, settings: Settings) -> list[Cell]:
    """Every cell of one profile, models outermost, in the order of the file.

    Raises:
        ConfigError: the models do not resolve, or are not matched.
    """
    profile = experiment.profile(profile_name)
    models = resolve_models(experiment, profile_name)
    return [
        Cell(
            model_name=name,
            size=spec.size or profile.size,
            model=models[name],
            backend=spec.backend,
            chunk_size=chunk_size(spec),
            workload=workload,
            point=Point(batch_size=batch_size, context_len=context_len),
            settings=settings,
        )
        for name, spec in experiment.models.items()
        for workload, grid in profile.workloads.items()
        for batch_size in grid.batch_size
        for context_len in grid.context_len
    ]


def chunk_size(spec: ModelSpec) -> int | None:
    """Tokens of a chunk; that of fla's kernels, which is their own, where they run."""
    if not isinstance(spec, RetNetSpec):
        return None
    return FLA_CHUNK_SIZE if spec.backend == "fla" else spec.chunk_size


def form_chunk(backend: str, chunk: int | None) -> int | None:
    """Chunk by which a form's operations are counted: one token of the recurrent form, None for the parallel form."""
    return {"parallel": None, "recurrent": 1}.get(backend, chunk)


def resolve_models(experiment: Experiment, profile_name: str) -> dict[str, ModelConfig]:
    """The matched configurations of an experiment's models in one profile."""
    profile = experiment.profile(profile_name)
    models = {name: matching.resolve_model(spec, profile.size) for name, spec in experiment.models.items()}
    if len(models) > 1:
        where = f"experiment '{experiment.name}', profile '{profile_name}'"
        matching.match_models(models, allow_mismatch=profile.allow_mismatch, where=where)
    return models


def pair_id(models: dict[str, ModelConfig]) -> str:
    """Hash of all models of an experiment: cells with one pair_id were matched with each other."""
    text = "\n".join(f"{name}={config.model_dump_json()}" for name, config in sorted(models.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
