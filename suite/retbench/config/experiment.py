"""Experiment files (TOML) read into frozen, strict, typed objects; a misspelt key is an error that names it.

What is read here says what to run, not how a model is built: `matching` turns a model's entry and a size into
a `ModelConfig`, `cells` turns a profile into the cells of a sweep. Nothing here imports torch.
"""

import os
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, ValidationError, field_validator, model_validator

from retbench.architectures.architecture import ModelSpec
from retbench.architectures.registry import architectures
from retbench.config.evaluation import Length, PerplexitySpec, ZeroshotSpec, without_repeats
from retbench.config.training import TrainingSpec
from retbench.errors import ConfigError, unknown_name
from retbench.strict import Strict, explain

Dtype = Literal["float64", "float32", "bfloat16", "float16"]
if TYPE_CHECKING:
    AnyModelSpec = ModelSpec
else:
    AnyModelSpec = Annotated[
        Union[tuple(each.spec for each in architectures().values())],  # noqa: UP007 - made at run time
        Field(discriminator="architecture"),
    ]
"""A `[models.NAME]` table of any architecture, a user's package's included."""


class GridSpec(Strict):
    """A `[profiles.P.workloads.KIND]` table of a workload that measures cost: its points, as a grid."""

    context_len: tuple[Length, ...] = Field(min_length=1)
    batch_size: tuple[Length, ...] = Field(default=(1,), min_length=1)

    _distinct = field_validator("context_len", "batch_size")(without_repeats)


class Workloads(Strict):
    """The tables `[profiles.P.workloads.*]`."""

    decode: GridSpec | None = None
    prefill: GridSpec | None = None
    memory: GridSpec | None = None
    training: GridSpec | None = None
    """What a step of training costs; what a model is trained on is `[profiles.P.training]`."""
    largest_batch: GridSpec | None = None
    perplexity: PerplexitySpec | None = None
    zeroshot: ZeroshotSpec | None = None

    @property
    def grids(self) -> dict[str, GridSpec]:
        """The workloads that measure cost, by name."""
        return {name: spec for name, spec in self if isinstance(spec, GridSpec)}

    @property
    def present(self) -> tuple[str, ...]:
        """Names of all that the profile has."""
        return tuple(name for name, spec in self if spec is not None)

    @model_validator(mode="after")
    def _not_empty(self) -> "Workloads":
        if not self.present:
            raise ValueError(f"there is no workload; add one of {', '.join(type(self).model_fields)}")
        return self

    @model_validator(mode="after")
    def _finds_batch(self) -> "Workloads":
        if self.largest_batch and self.largest_batch.batch_size != (1,):
            raise ValueError(
                f"batch_size is {list(self.largest_batch.batch_size)} in workload 'largest_batch', which finds the "
                "batch size itself; remove the field"
            )
        return self


class Profile(Strict):
    """A `[profiles.NAME]` table: one experiment at one scale."""

    size: str
    dtype: Dtype = "float32"
    rounds: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a worker; every physical core when absent."""
    warmup_s: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Wall time of untimed steps before the first sample of a cell."""
    min_steps: int = Field(default=20, ge=1)
    """Timed steps of a cell in a round; their median is the round's value."""
    timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    """Longest silence of a cell; one that says nothing for so long is ended and recorded as `timeout`. An evaluation
    tells of its progress; a cell that measures cost is silent from its beginning to its end."""
    cuda_graph: bool = False
    """Replay each step from a captured CUDA graph, for every model of the experiment."""
    compile: bool = False
    """Compile each decode step with torch.compile, for every model of the experiment."""
    activation_checkpointing: bool = False
    """Training keeps only what enters each block and computes the rest again for the gradients."""
    memory_limit_bytes: int | None = Field(default=None, ge=1)
    """Bytes that model, state and workspace may take together while cells are measured; beyond it is out of memory.
    The equality gate is not held to it."""
    allow_mismatch: bool = False
    """Run a pair whose non-embedding parameters differ by more than 1 %."""
    training: TrainingSpec | None = None
    """What `retbench train` trains; quality is then measured of the models that it left."""
    trained_by: str | None = Field(default=None, pattern=r"^[^/]+/[^/]+$")
    """EXPERIMENT/PROFILE whose trained models are measured, where they are those of another file."""
    workloads: Workloads

    @model_validator(mode="after")
    def _one_origin(self) -> "Profile":
        if self.training and self.trained_by:
            raise ValueError(
                "it has a table 'training' and the field 'trained_by': its models have one origin"
            )
        return self


class Experiment(Strict):
    """One experiment file."""

    name: str
    title: str
    source: str
    """The table or figure of the paper that this reproduces."""
    expect: str
    """What to expect, in a sentence, with what it costs and on what."""
    models: dict[str, AnyModelSpec] = Field(min_length=1)
    profiles: dict[str, Profile] = Field(min_length=1)

    @field_validator("models", mode="before")
    @classmethod
    def _patterns_are_hybrids(cls, models: object) -> object:
        if not isinstance(models, dict):
            return models
        return {
            name: {"architecture": "hybrid", **table}
            if isinstance(table, dict) and "pattern" in table
            else table
            for name, table in models.items()
        }

    def profile(self, name: str) -> Profile:
        """The profile called `name`; ConfigError with a suggestion when there is none."""
        if name not in self.profiles:
            raise unknown_name("profile", name, self.profiles, where=f"experiment '{self.name}'")
        return self.profiles[name]


def experiments_dir() -> Path:
    """Folder of the experiment files: inside the installed wheel, or `experiments/` of the checkout."""
    packaged = Path(str(resources.files("retbench"))) / "experiments"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "experiments"


def list_experiments() -> dict[str, Path]:
    """Every shipped experiment by name."""
    return {path.stem: path for path in sorted(experiments_dir().glob("*.toml"))}


def load_experiment(
    name_or_path: str, overrides: Sequence[str] = (), *, profile: str | None = None
) -> Experiment:
    """Read an experiment by its name in `experiments/` or by the path of a TOML file.

    Args:
        name_or_path: `latency`, or a path that ends in `.toml`.
        overrides: `key=value` items as given to `--set`; the value is TOML. A key is a field of the profile
            (`rounds=3`, `workloads.decode.context_len=[1024]`) or starts with `models.`
            (`models.retnet.variant=torchscale`).
        profile: The profile that unprefixed override keys go to; every profile when None.

    Raises:
        ConfigError: the file is absent, is not TOML, or holds something unknown or out of range.
    """
    path = _find(name_or_path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}. Mend the file at that place.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}. Check the path and that it is a UTF-8 text file."
        ) from error
    if "name" in raw:
        raise ConfigError(
            f"{path}: the field 'name' is not allowed; an experiment is called after its file. Remove it."
        )
    for item in overrides:
        _apply_override(raw, item, profile)
    try:
        return Experiment.model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        where = " ".join([str(path), *(f"--set {item}" for item in overrides)])
        tables = raw.get("models")
        known = tables.items() if isinstance(tables, dict) else ()
        whole = [name for name, table in known if isinstance(table, dict) and "architecture" in table]
        raise ConfigError(explain(error, Experiment, where, whole)) from error


def _find(name_or_path: str) -> Path:
    """Path of an experiment file; ConfigError with a suggestion when there is none."""
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not os.path.isfile(path):  # unlike Path.is_file, false for a name too long to exist
            raise ConfigError(
                f"no experiment file at '{path}'. Give an existing TOML file or a name from `retbench list`."
            )
        return path
    known = list_experiments()
    if name_or_path not in known:
        raise unknown_name("experiment", name_or_path, known)
    return known[name_or_path]


def _apply_override(raw: dict[str, Any], item: str, profile: str | None) -> None:
    """Set one `key=value` in the parsed TOML, in place."""
    key, sign, text = item.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {item!r}: not of the form key=value. Example: --set rounds=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string: --set dtype=bfloat16
    parts = key.strip().split(".")
    for target in _override_targets(raw, parts[0], profile):
        node = target
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {item!r}: '{part}' is not a table. Check the key.")
        node[parts[-1]] = value


def _override_targets(raw: dict[str, Any], first: str, profile: str | None) -> list[dict[str, Any]]:
    """The tables that an override goes into; validation names what should be a table and is not."""
    if first == "models":
        return [raw]
    profiles = raw.get("profiles")
    if not isinstance(profiles, dict):
        return []
    chosen = [profiles[profile]] if profile in profiles else list(profiles.values())
    return [table for table in chosen if isinstance(table, dict)]
