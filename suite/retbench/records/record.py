"""The record: one JSON object per (cell, round); independent of models and of measurement.

`record.schema.json` in this folder holds the JSON Schema of a record; a test keeps the two equal.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from typing_extensions import TypeAliasType

from retbench.strict import JSON_SCHEMA, WithoutTitles

SCHEMA_VERSION = 8

READABLE_VERSIONS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Schema versions that are read, each as one of this version.

1: without quality. 2: with `pair_id`, which depended on the other models of the experiment. 3: without it; the
environment identifies the hardware (`node_id`, `gpu_uuid`) and the code of model and workload (`model_code`,
`workload_code`). Commands of 1 and 2 are read with the table of protocols that perplexity has had since. 4: with
`read_curve` of the ceilings. 5: with `num_pairs` of a point. 6: with `measured_at` of a read rate; only processes whose
workloads have shares of ceilings measure them. 7: with `run_id` of a gate. 8: with `num_rounds`.
"""

SAME_MEANING_SINCE = 3
"""Schema version since which every metric that is compared means the same."""

Protocol = Literal["whole", "strided", "last"]
"""Protocol by which documents are given to a model for their perplexity.

whole: each document from its beginning, its first `context_len` tokens in one pass; a retention state is streamed.
strided: windows in which a model sees `context_len` tokens, `stride` apart; each token is scored once, with more than
    `context_len - stride` tokens before it except at the document's beginning.
last: chunks of `CHUNK_LEN` tokens, the last `SCORED_LEN` of each scored by a model that sees the last `context_len` of
    the chunk, these included (arXiv:2307.08621, Table 8).
"""

Status = Literal["ok", "oom", "timeout", "failed", "gate_failed", "unsupported"]

SHARES = ("roofline_ratio", "bandwidth_ratio")
"""Metrics that are shares of a measured ceiling."""

FAULTY_CEILING = (
    "it was faster than the device was measured to allow, so the ceiling is at fault and no share is given"
)
"""Why a share is absent."""

NONFINITE = ("NaN", "Infinity", "-Infinity")
"""Strings that stand for an error that is not finite, which JSON has no number for."""

CONTROL = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
"""Characters that move a cursor, end a line, or turn the direction of text, as ranges of a pattern."""

Name = TypeAliasType("Name", Annotated[str, StringConstraints(max_length=200, pattern=f"^[^{CONTROL}]*$")])
"""A name that tables, figures and files show."""

Count = TypeAliasType("Count", Annotated[int, Field(ge=0, le=2**53)])
Size = TypeAliasType("Size", Annotated[int, Field(ge=1, le=2**53)])
"""A number of things, and one above 0; up to the limit a float holds them exactly."""

Number = TypeAliasType("Number", Annotated[FiniteFloat, Field(ge=-1e150, le=1e150)])
Positive = TypeAliasType("Positive", Annotated[FiniteFloat, Field(gt=0, le=1e150)])
"""A measured number, whose square is finite too, and one that others are divided by."""

AnyFloat = Annotated[
    float, WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": list(NONFINITE), "type": "string"}]})
]


class Part(BaseModel):
    """Base of all parts of a record: immutable, unknown fields are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", use_attribute_docstrings=True
    )


class Metric(Part):
    """One measured quantity of one round."""

    unit: Name
    """Base unit: s, bytes, bytes/s, FLOP, FLOP/s, tokens/s, J, W, ratio, count, nats, bits."""
    value: Number
    """Value of the round: the median of the samples, or a single measured value."""
    samples: tuple[Number, ...] = ()
    """Every raw sample in the order taken; empty for a single measured value."""


class Series(Part):
    """A quantity as a function of another one: a learning curve, the loss by position."""

    unit: Name
    """Unit of `y`."""
    x_name: Name
    """Quantity that `x` counts, such as tokens or position."""
    x: tuple[Number, ...]
    """Values of x; an interval is given by its end."""
    y: tuple[Number, ...]
    counts: tuple[Count, ...] = ()
    """Number of values that each y is the mean of; empty where each is a single value."""

    @model_validator(mode="after")
    def _aligned(self) -> "Series":
        if len(self.x) != len(self.y) or (self.counts and len(self.counts) != len(self.x)):
            raise ValueError(
                f"x, y and counts have {len(self.x)}, {len(self.y)} and {len(self.counts)} values"
            )
        return self


class Documents(Part):
    """The file that holds the results of each document, in the folder of the record file."""

    file: Name
    """Name of the file: JSON Lines, compressed with gzip."""
    sha256: str
    """Hash of the uncompressed lines."""
    num_documents: int = Field(ge=0, le=2_000_000)


class WeightsInfo(Part):
    """Origin of weights that were not drawn from a seed."""

    source: str
    """Origin as requested: EXPERIMENT/PROFILE of the training, a folder, or a hub name."""
    fingerprint: str
    """Hash of the weights, or of the hub's revision."""
    format: Name
    revision: str | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """Seed of the training; this and the following fields are known for trainings by retbench only."""
    num_tokens: Count | None = None
    """Tokens of the training."""
    learning_rate: Number | None = None
    corpus: str | None = None
    """Corpus of the training."""


class ModelInfo(Part):
    """The model of a record."""

    name: Name
    """Key in the experiment file."""
    architecture: Name
    variant: Name
    size: Name
    num_params: Count
    num_params_nonembedding: Count
    config: dict[str, Any]
    """Every field of the model's configuration, defaults included."""
    weights: WeightsInfo | None = None
    """Origin of the weights; None where they were drawn from a seed."""


class Point(Part):
    """Coordinates of a record in the sweep."""

    batch_size: Size
    context_len: Size
    task: Name | None = None
    """Corpus, zero-shot task or synthetic task of a quality workload."""
    protocol: Protocol | None = None
    """Protocol by which documents were cut."""
    stride: Size | None = None
    """Tokens between the beginnings of two windows in the protocol `strided`."""
    num_fewshot: Count | None = None
    """Number of few-shot examples in the prompt."""
    num_pairs: Count | None = None
    """Number of key-value pairs in an example of a synthetic task."""


class GateCheck(Part):
    """One comparison of two forms of a model."""

    name: Name
    """The two forms, such as 'chunkwise = parallel' or 'decode = prefill'."""
    length: Count
    """Number of tokens."""
    error: AnyFloat
    """max |difference| of the logits over the root mean square of the reference; in 16-bit dtypes that of a mixer's
    head outputs, as vectors, from the same inputs."""
    limit: Positive

    @property
    def passed(self) -> bool:
        """True where the error is finite and within the limit."""
        return self.error <= self.limit


class Gate(Part):
    """Equivalence check of a model's forms, which it passes before anything is timed."""

    passed: bool
    dtype: Name
    checks: tuple[GateCheck, ...]
    run_id: Name | None = None
    """The run that checked it, where that is another one than the record's."""

    @property
    def failures(self) -> str:
        """The failed comparisons in words, each with its error and its limit; empty where all passed."""
        failed = [check.error for check in self.checks if not check.passed]
        if failed and not any(map(math.isfinite, failed)):
            return "its outputs are not finite"
        return "; ".join(
            f"{check.name} at {check.length} tokens: error {check.error:.3g}, limit {check.limit:.3g}"
            for check in self.checks
            if not check.passed
        )


class ReadRate(Part):
    """The read bandwidth of a buffer of one size."""

    footprint_bytes: Size
    bytes_per_s: Positive
    kernel: Name
    """The fastest of the kernels that were tried."""
    measured_at: Name | None = None
    """Time in UTC, ISO 8601; None in records of schema versions before 6."""


def interpolate(points: Sequence[tuple[int, float]], footprint_bytes: float) -> float:
    """Return the value at a footprint, between two points on a line over the logarithm of the size.

    Below the smallest size and above the largest it is theirs.

    Args:
        points: Sizes in bytes with their values, the smallest first; at least one.
        footprint_bytes: The footprint.
    """
    index = bisect_left(points, footprint_bytes, key=lambda point: point[0])
    (low_bytes, low), (high_bytes, high) = points[max(0, index - 1)], points[min(index, len(points) - 1)]
    if footprint_bytes >= high_bytes or low_bytes == high_bytes:
        return high
    share = math.log(footprint_bytes / low_bytes) / math.log(high_bytes / low_bytes)
    return (1 - share) * low + share * high


def median_curve(curves: Iterable[Sequence[ReadRate]]) -> tuple[ReadRate, ...]:
    """Return the median bandwidth of each size that all curves have but for empty ones."""
    measured = [{rate.footprint_bytes: rate for rate in curve} for curve in curves if curve]
    sizes = sorted(set(measured[0]).intersection(*measured[1:])) if measured else []
    return tuple(
        ReadRate(
            footprint_bytes=size,
            bytes_per_s=median(each[size].bytes_per_s for each in measured),
            kernel=measured[0][size].kernel,
        )
        for size in sizes
    )


class Ceilings(Part):
    """Performance that the device reached.

    Products are measured in the process of the cell, before its cells; after training steps again, and the better rate
    counts. The curve is measured once per run, by the first process that needs one. At the footprint of a timed step it
    has the better of the two rates that the process of the cell reached just before and just after the step.
    """

    read_bandwidth_bytes_per_s: Positive
    """Bandwidth of a buffer far beyond the caches."""
    matmul_flops_per_s: Positive
    """FLOP/s of matrix products in the dtype of the cell."""
    read_curve: tuple[ReadRate, ...] = ()
    """By size, the smallest first, each with its time. Empty in records that have one bandwidth for every size."""

    @model_validator(mode="after")
    def _sizes_grow(self) -> Self:
        sizes = [rate.footprint_bytes for rate in self.read_curve]
        if any(below >= above for below, above in pairwise(sizes)):
            raise ValueError(
                f"read_curve has the sizes {sizes}, and each must be larger than the one before it"
            )
        return self

    def read_bytes_per_s(self, footprint_bytes: float) -> float:
        """Return the read bandwidth at a footprint, between two sizes on a line over the logarithm of the size.

        Below the smallest size and above the largest it is theirs; without a curve it is one for every size.
        """
        points = [(one.footprint_bytes, one.bytes_per_s) for one in self.read_curve]
        return interpolate(points, footprint_bytes) if points else self.read_bandwidth_bytes_per_s

    def with_rate(self, rate: ReadRate) -> "Ceilings":
        """Return the same with another rate at one size: what this process reached, in place of what another did."""
        others = [one for one in self.read_curve if one.footprint_bytes != rate.footprint_bytes]
        curve = sorted([*others, rate], key=lambda one: one.footprint_bytes)
        return self.model_copy(update={"read_curve": tuple(curve)})


class Record(Part):
    """One cell measured in one round, or the reason why it was not."""

    schema_version: int = SCHEMA_VERSION
    run_id: Name
    experiment: Name
    profile: Name
    cell_id: Name
    """Hash of the cell's full configuration."""
    pair_id: str | None = None
    """Hash of all models of the experiment; only records of schema versions 1 and 2 have it."""
    round: Count
    num_rounds: Size | None = None
    """Rounds in which its run was to measure the cell; None in trainings, and where schema versions before 8 or a
    measurement without a fixed number leave it unknown."""
    started_at: Name
    """Time in UTC, ISO 8601."""
    status: Status
    error: str | None = None
    model: ModelInfo
    workload: Name
    point: Point
    settings: dict[str, Any]
    """Settings of the cell: dtype, device, threads, seed, warm-up, steps, graph."""
    backend: dict[str, str | int | float | bool]
    """Executed backend, as the code that ran reports it."""
    environment: dict[str, Any]
    ceilings: Ceilings | None = None
    gate: Gate | None = None
    metrics: dict[Name, Metric] = Field(default_factory=dict)
    series: dict[Name, Series] = Field(default_factory=dict)
    documents: Documents | None = None
    absent: dict[Name, str] = Field(default_factory=dict)
    """Metrics that are not defined here, each with the reason."""
    command: str
    """Command line that repeats the measurement."""


def utc_now() -> str:
    """Return the time as records state it: UTC, ISO 8601, whole milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema of a record, which `record.schema.json` holds too."""
    schema = Record.model_json_schema(schema_generator=WithoutTitles)
    schema["properties"]["schema_version"]["enum"] = list(READABLE_VERSIONS)
    return {"$schema": JSON_SCHEMA, **schema}
