"""Experiment files (TOML) as frozen, strict, typed objects; a misspelt key is an error that names it.

`experiment_files` finds and reads them. `matching` turns a model's entry and a size into a `ModelConfig`, and `cells`
turns a profile into the cells of a sweep. Nothing here imports torch.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

from retbench.architectures.architecture import ModelSpec
from retbench.architectures.registry import architectures
from retbench.architectures.sizes import SizeId
from retbench.config.dtypes import Dtype, dtype_id
from retbench.config.evaluation import MAX_LENGTH, WorkloadSpec
from retbench.config.training import TrainingSpec
from retbench.errors import unknown_name
from retbench.ops import DecodeOperators
from retbench.strict import JSON_SCHEMA, Name, NamePair, Strict, WithoutTitles
from retbench.workloads.workload import WORKLOADS, Workload, find_workload

PROFILE_SYNONYMS = {
    **dict.fromkeys(("gpu", "cuda", "a100", "h100", "full", "large"), "paper"),
    **dict.fromkeys(("laptop", "default", "small", "local"), "cpu"),
    **dict.fromkeys(("test", "quick", "fast", "tiny"), "smoke"),
}
"""Words that people use for the scale of a run, with the profile that is meant."""

if TYPE_CHECKING:
    AnyModelSpec = ModelSpec
else:
    AnyModelSpec = Annotated[
        Union[tuple(each.spec for each in architectures().values())],  # noqa: UP007 - made at run time
        Field(discriminator="architecture"),
    ]
"""A `[models.NAME]` table of any architecture, a user's package's included."""


_TAKES_PATTERN = next(name for name, each in architectures().items() if "pattern" in each.spec.model_fields)
"""Architecture of a `[models.NAME]` table that has a pattern and names none."""


class Workloads(Strict):
    """The tables `[profiles.P.workloads.*]`: one or more registered workloads by name, each with its own table."""

    model_config = ConfigDict(extra="allow")

    @classmethod
    def described_by(cls) -> type[BaseModel]:
        """Return the class whose fields are the registered workloads."""
        return _tables_type()

    @classmethod
    def __get_pydantic_json_schema__(cls, _: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the tables of all registered workloads."""
        return handler(_tables_type().__pydantic_core_schema__)

    @model_validator(mode="before")
    @classmethod
    def _read_tables(cls, raw: Any) -> Any:
        if isinstance(raw, cls):
            return raw
        tables = dict(_tables_type().model_validate(raw))
        present = {name: spec for name, spec in tables.items() if spec is not None}
        if not present:
            raise ValueError(f"there is no workload; add one of {', '.join(tables)}")
        return present

    @property
    def specs(self) -> dict[str, WorkloadSpec]:
        """The table of each workload of the profile, by name."""
        return dict(self.model_extra or {})

    @property
    def registered(self) -> tuple[Workload, ...]:
        """The workloads of the profile."""
        return tuple(find_workload(name) for name in self.specs)

    def limited(self, limit: int) -> "Workloads":
        """Return the workloads with the first context lengths, or documents where quality is measured."""
        return self.model_copy(update={name: spec.limited(limit) for name, spec in self.specs.items()})


@cache
def _tables_type() -> type[Strict]:
    """A class with one optional field for each registered workload."""
    specs = {name: workload.spec for name, workload in WORKLOADS.items() if workload.spec is not None}
    fields: dict[str, Any] = {name: (spec | None, None) for name, spec in specs.items()}
    return create_model("Workloads", __base__=Strict, **fields)


def _with_architectures(models: object) -> object:
    """Return `[models.NAME]` tables in which those with a pattern name their architecture; anything else as it is."""
    if not isinstance(models, dict):
        return models
    large = [one for one in scalars_of(models) if isinstance(one, int) and abs(one) > MAX_LENGTH]
    if large:
        raise ValueError(f"it has the number {large[0]:,}; the largest is {MAX_LENGTH:,}")
    return {
        name: {"architecture": _TAKES_PATTERN, **table}
        if isinstance(table, dict) and "pattern" in table
        else table
        for name, table in models.items()
    }


class Profile(Strict):
    """A `[profiles.NAME]` table: one experiment at one scale."""

    size: SizeId
    dtype: Annotated[Dtype, BeforeValidator(dtype_id)] = "float32"
    rounds: int = Field(default=5, ge=1, le=10_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, ge=1, lt=2**31)
    """CPU threads of a worker; every physical core when absent."""
    warmup_s: float = Field(default=1.0, ge=0, le=86_400, allow_inf_nan=False)
    """Wall time of untimed steps before the first sample of a cell."""
    min_steps: int = Field(default=20, ge=1, le=1_000_000)
    """Timed steps of a cell in a round; their median is the round's value."""
    timeout_s: float = Field(default=600.0, gt=0, le=10_000_000, allow_inf_nan=False)
    """Longest time without a message from a cell; after it the cell is ended and recorded as `timeout`. An evaluation
    reports its progress; a cell that measures cost sends no message before its end."""
    cuda_graph: bool = False
    """Replay each step from a captured CUDA graph, for every model of the experiment."""
    compile: bool | Literal["auto"] = False
    """Compile each decode step with torch.compile, for every model of the experiment. auto: on a CPU that has a C++
    compiler and Python's headers, unless a model is one of another library."""
    decode_operators: DecodeOperators | None = None
    """Operators of decode steps, for every model of the experiment. fused: kernels for one token, on CUDA devices.
    eager: torch's operators. Absent: fused if they can run, else eager; records say which were executed."""
    activation_checkpointing: bool = False
    """Training keeps only the input of each block and recomputes the other activations for the gradients."""
    memory_limit_bytes: int | None = Field(default=None, ge=1, le=2**50)
    """Bytes that model, state and workspace may take together while cells are measured; more is out of memory. The
    limit does not apply to the equivalence check."""
    allow_mismatch: bool = False
    """Run models whose non-embedding parameters differ by more than 1 %."""
    training: TrainingSpec | None = None
    """Training by `retbench train`; the workloads are then measured with the trained models."""
    trained_by: NamePair | None = None
    """EXPERIMENT/PROFILE of another file whose trained models are measured."""
    models: dict[Name, AnyModelSpec] | None = None
    """Every model of the profile, where the profile itself has tables `models.NAME`: they add models, and replace
    fields of the experiment's models. The experiment's models when absent."""
    workloads: Workloads

    _architectures = field_validator("models", mode="before")(_with_architectures)

    @model_validator(mode="after")
    def _one_origin(self) -> "Profile":
        if self.training and self.trained_by:
            raise ValueError(
                "it has both a table 'training' and the field 'trained_by'; models have one origin, so remove one"
            )
        return self


class ExperimentFile(Strict):
    """Fields of an experiment file."""

    title: str
    source: str
    """Table or figure of the paper that this reproduces."""
    expect: str
    """Expected result, in a sentence."""
    models: dict[Name, AnyModelSpec] = Field(min_length=1)
    profiles: dict[Name, Profile] = Field(min_length=1)


class Experiment(ExperimentFile):
    """One experiment file."""

    name: Name
    """Name of the file, without its ending."""

    _architectures = field_validator("models", mode="before")(_with_architectures)

    @classmethod
    def described_by(cls) -> type[BaseModel]:
        """Return the class whose fields the file may have: not its own name."""
        return ExperimentFile

    @model_validator(mode="before")
    @classmethod
    def _complete_profiles(cls, raw: Any) -> Any:
        """Merge the experiment's models into those of each profile that has some."""
        base, profiles = raw.get("models"), raw.get("profiles")
        if not isinstance(base, dict) or not isinstance(profiles, dict):
            return raw
        return {**raw, "profiles": {name: _completed(profile, base) for name, profile in profiles.items()}}

    @model_validator(mode="after")
    def _names_workloads(self) -> "Experiment":
        tables = [self.models, *(profile.models or {} for profile in self.profiles.values())]
        for name, spec in [pair for table in tables for pair in table.items()]:
            if spec.workloads == ():
                raise ValueError(
                    f"models.{name}.workloads is empty: leave it out for all, or remove the model"
                )
            unknown = [workload for workload in spec.workloads or () if workload not in WORKLOADS]
            if unknown:
                raise ValueError(
                    f"models.{name} names the workload {unknown[0]!r}; known are {', '.join(WORKLOADS)}"
                )
        return self

    def of_profile(self, name: str) -> "Experiment":
        """Return the experiment with the models of one profile; ConfigError when there is no such profile."""
        profile = self.profile(name)
        if profile.models is None:
            return self
        profiles = {**self.profiles, name: profile.model_copy(update={"models": None})}
        return self.model_copy(update={"models": profile.models, "profiles": profiles})

    def trained_in(self, profiles: Collection[str]) -> list[str]:
        """Return the experiments by whose `retbench train` the models of some profiles are trained."""
        chosen = [self.profile(name) for name in profiles]
        own = [self.name for profile in chosen if profile.training]
        others = [profile.trained_by.partition("/")[0] for profile in chosen if profile.trained_by]
        return list(dict.fromkeys(own + others))

    def profile(self, name: str) -> Profile:
        """Return the profile called `name`; ConfigError with a suggestion when there is none."""
        if name not in self.profiles:
            where = f"experiment '{self.name}'"
            raise unknown_name("profile", name, self.profiles, where=where, synonyms=PROFILE_SYNONYMS)
        return self.profiles[name]


def _completed(profile: Any, base: Mapping[str, Any]) -> Any:
    """Return a profile's table with all of its models, if it has tables of models."""
    own = profile.get("models") if isinstance(profile, dict) else None
    if not isinstance(own, dict):
        return profile
    merged = {
        name: {**base[name], **table}
        if isinstance(table, dict) and isinstance(base.get(name), dict)
        else table
        for name, table in own.items()
    }
    return {**profile, "models": {**base, **merged}}


def experiment_schema() -> dict[str, Any]:
    """Return the JSON Schema of an experiment file for editors, which `experiment.schema.json` holds too.

    A profile may replace some fields of a model, so its tables of models may have any field. What one field says of
    another is checked when a file is read.
    """
    schema = Experiment.model_json_schema(schema_generator=WithoutTitles)
    del schema["properties"]["name"]  # an experiment is called after its file
    schema["required"].remove("name")
    tables = schema["$defs"]["Profile"]["properties"]["models"]
    tables["anyOf"] = [{"type": "object", "additionalProperties": {"type": "object"}}]
    del tables["default"]
    for each in architectures().values():  # a variant or a pattern stands for other fields
        spec = schema["$defs"][each.spec.__name__]
        spec["required"] = [] if "pattern" in spec["properties"] else ["architecture"]
    return {"$schema": JSON_SCHEMA, **schema}


def scalars_of(node: object) -> Iterator[object]:
    """Yield every key of nested tables, and every value that is no table or list."""
    if isinstance(node, dict):
        yield from node
    if isinstance(node, (dict, list)):
        for one in node.values() if isinstance(node, dict) else node:
            yield from scalars_of(one)
    else:
        yield node
