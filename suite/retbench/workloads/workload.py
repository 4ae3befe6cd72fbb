"""Workloads: what each takes in a profile, what it measures, how, and for how long.

Each module of this package that assigns the name `WORKLOAD` holds one. Users' packages add theirs through entry points
of the group `retbench.workloads`. Neither this module nor the top level of those imports torch.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from retbench import user_packages
from retbench.architectures.configs import ModelConfig
from retbench.config.evaluation import GridSpec, WorkloadSpec
from retbench.errors import ConfigError, RetbenchError, shown, unknown_name
from retbench.measure.environment import package_version
from retbench.measure.source import part_hash
from retbench.records.record import SHARES, Ceilings, Metric, Record, Series
from retbench.units import stated_unit

Replicate = Literal["round", "document", "seed"]
"""Unit of replication: a round where cost is measured; a document or a seed of training where quality is."""
Scores = Literal["answers", "text", "slices", "needles", "recall", "lengths"]
"""Kinds of scores of a workload of quality, by which its figures and tables are chosen.

Right answers to questions; the loss of text; that of repeated and of new pairs of words apart; answers by the depth of
what is hidden in a text; accuracy against the bytes of the state; accuracy at multiples of the trained length, which
records note as `trained_len`.
"""
Notes = dict[str, str | int | float | bool]
"""The executed backend and how it ran, as records hold it."""


@dataclass(frozen=True)
class Measurement:
    """One cell measured in one round.

    Attributes:
        metrics: What was measured.
        series: What was measured as a function of another quantity, such as the loss by position.
        documents: Results of single documents, where quality is measured.
        absent: Metrics that are not defined here, each with the reason.
        backend: The executed backend, as the code that ran reports it.
        ceilings: Those with the read bandwidth at the footprint of what was measured; None where nothing was added to
            those of the process.
    """

    metrics: dict[str, Metric]
    series: dict[str, Series] = field(default_factory=dict)
    documents: tuple[dict[str, Any], ...] = ()
    absent: dict[str, str] = field(default_factory=dict)
    backend: Notes = field(default_factory=dict)
    ceilings: Ceilings | None = None


@dataclass(frozen=True)
class MetricSpec:
    """One metric of a workload.

    Attributes:
        name: As records hold it; it ends in its base unit, or `unit` states it.
        heading: Column heading in tables for people.
        lower_is_better: None where neither direction is an advantage.
        has_interval: Timed in each round, so that tables show its 95 % interval. Other costs are counted, and one round
            decides.
        optional: A measurement may lack it without a reason, because only some devices or tasks have it. Tables leave
            it out where no point has a value.
        better: How a model with the better value is described: "faster", "smaller".
        unit: Base unit of its values; by default the one that the name states, and empty where it states none.
    """

    name: str
    heading: str
    lower_is_better: bool | None = None
    has_interval: bool = False
    optional: bool = False
    better: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", self.unit or stated_unit(self.name) or "")


@dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
        name: Its name in records and in `[profiles.P.workloads.NAME]`.
        title: Heading of its figures and tables.
        metrics: In the order of the table; the first is the primary one, by which models are compared.
        quantity: What the primary metric is, in a sentence: "time per output token".
        replicate: What its intervals are over; "round" of a workload that measures cost, and of no other.
        scores: What it scores, where it measures quality.
        spec: The table that it takes in a profile; None where a profile cannot ask for it.
        measure: Measures one cell, given a `context.Context`; torch is imported when it is called. None for what
            `retbench train` records.
        find_inputs: Checks and describes what cells are evaluated on: given the profile's table, the models under test
            and the data folder, it returns a `cells.Evaluation` by the model's label and the point's task. None where
            cells need no more than their point.
        estimate: Seconds that a cell takes in one round, given the cell and the device's ceilings; None where they
            cannot be estimated.
        modules: Full names of the modules that measure it, where these are not the module of `measure`.
        order: Place in lists; workloads of users' packages come last.
        one_round: Another round would only repeat the first.
        finds_batch: It finds a batch size instead of being given one, in a worker of its own for each cell.
        starts_from_state: Its cells start from a state of real text where the model's state can be streamed.
        compiles: Its steps are compiled where a profile says `compile`.
        computes_gradients: Its steps train. They are not captured in CUDA graphs and may recompute activations.
        reads_prompts: Its steps process whole prompts, so that the activations of a prompt are in memory.
    """

    name: str
    title: str
    metrics: tuple[MetricSpec, ...]
    quantity: str
    replicate: Replicate = "round"
    scores: Scores = "answers"
    spec: type[WorkloadSpec] | None = GridSpec
    measure: Callable[[Any], Measurement] | None = None
    find_inputs: Callable[[Any, Sequence[Any], Path | None], Mapping[tuple[str, str], Any]] | None = None
    estimate: Callable[[Any, Ceilings], float] | None = None
    modules: tuple[str, ...] = ()
    order: int = 100
    one_round: bool = False
    finds_batch: bool = False
    starts_from_state: bool = False
    compiles: bool = False
    computes_gradients: bool = False
    reads_prompts: bool = False

    def __post_init__(self) -> None:
        """Raise a ConfigError where there is no metric, or one has no unit, or another than its name states."""
        if not self.metrics:
            raise ConfigError(
                f"workload '{self.name}' has no metrics, and models are compared by the first. Give it a MetricSpec"
            )
        for metric in self.metrics:
            named = f"workload '{self.name}': the metric '{metric.name}'"
            if not metric.unit:
                raise ConfigError(
                    f"{named} has no unit, and its name states none. Give its MetricSpec one, such as "
                    'unit="ratio", or end its name in one, such as _s or _bytes'
                )
            if metric.unit != (stated_unit(metric.name) or metric.unit):
                raise ConfigError(
                    f"{named} has the unit {shown(metric.unit)}, and its name states {stated_unit(metric.name)}"
                )

    @property
    def primary(self) -> MetricSpec:
        """The metric by which models are compared."""
        return self.metrics[0]

    def metric(self, name: str) -> MetricSpec:
        """Return the metric of this name, which it has."""
        return next(metric for metric in self.metrics if metric.name == name)

    @property
    def measures_cost(self) -> bool:
        """True if it measures cost, which differs between equal machines; quality does not."""
        return self.replicate == "round"

    @property
    def needs_ceilings(self) -> bool:
        """True if one of its metrics is a share of a measured ceiling."""
        return any(metric.name in SHARES for metric in self.metrics)

    @property
    def code(self) -> str:
        """Hash of the source that measures it, beyond what all workloads share."""
        return part_hash(self.modules or ((self.measure.__module__,) if self.measure else ()))

    def run(self, context: Any) -> Measurement:
        """Measure one cell.

        Raises:
            RetbenchError: the function gave something else than a measurement of every metric, with times above 0.
        """
        assert self.measure is not None, "no profile can ask for it"
        found = self.measure(context)
        self._check(found)
        return found

    def estimate_seconds(self, cell: Any, ceilings: Ceilings) -> float:
        """Return the seconds that a cell takes in one round; ConfigError where `estimate` gives no number from 0 on."""
        assert self.estimate is not None, "it can be estimated"
        seconds = self.estimate(cell, ceilings)
        if not user_packages.is_amount(seconds):
            raise ConfigError(
                f"workload '{self.name}': `estimate` returned {shown(seconds)}. Return seconds from 0 on."
            )
        return seconds

    def _check(self, found: object) -> None:
        """Raise a RetbenchError unless every metric is there, in its unit, or absent with a reason; times above 0."""
        named = f"workload '{self.name}'"
        declared = {spec.name: spec.unit for spec in self.metrics}
        if not isinstance(found, Measurement):
            raise RetbenchError(f"{named}: `measure` returned {shown(found)}. Return a Measurement.")
        for name, metric in found.metrics.items():
            if not isinstance(metric, Metric):
                raise RetbenchError(f"{named}: the metric '{name}' is {shown(metric)}. Make it a Metric.")
            # A record in another unit than the metric's name states could not be read.
            if metric.unit != (unit := stated_unit(name) or declared.get(name, metric.unit)):
                source = "its name states" if stated_unit(name) else "its MetricSpec declares"
                raise RetbenchError(
                    f"{named}: the metric '{name}' has the unit {shown(metric.unit)}, and {source} {unit}. "
                    f"Record it in {unit}."
                )
            if metric.unit == "s" and (shortest := min((metric.value, *metric.samples))) <= 0:
                raise RetbenchError(
                    f"{named}: the metric '{name}' has {shortest:g} s, and a time is above 0."
                )
        for spec in self.metrics:
            if not (spec.optional or spec.name in found.metrics or spec.name in found.absent):
                raise RetbenchError(
                    f"{named}: the metric '{spec.name}' is missing; measured are {', '.join(found.metrics) or 'none'}. "
                    "Measure it under the name that `metrics` declares, or give the reason in `absent`."
                )


def without_gradients(measure: Callable[[Any], Measurement]) -> Callable[[Any], Measurement]:
    """Run a function in torch's inference mode; torch is imported when it is called."""

    @functools.wraps(measure)
    def run(context: Any) -> Measurement:
        import torch

        with torch.inference_mode():
            return measure(context)

    return run


class _Registry(Mapping[str, Workload]):
    """Every workload by name, in the order of lists; found when it is first asked for one."""

    @functools.cached_property
    def _found(self) -> dict[str, Workload]:
        return collect_workloads()

    def __getitem__(self, name: str) -> Workload:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


WORKLOADS: Mapping[str, Workload] = _Registry()


def collect_workloads() -> dict[str, Workload]:
    """Find the workloads of this package and of users' packages.

    Raises:
        ConfigError: the workload of a user's package cannot be loaded or measured, or has a name that is taken.
    """
    own = [
        import_module(f"{__package__}.{path.stem}").WORKLOAD
        for path in sorted(Path(__file__).parent.glob("*.py"))
        if re.search(r"^WORKLOAD\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    found: dict[str, Workload] = {one.name: one for one in sorted(own, key=lambda one: one.order)}
    for workload in user_packages.installed(user_packages.WORKLOADS, Workload, found):
        if workload.measure is None and workload.spec is not None:
            raise ConfigError(
                f"workload '{workload.name}' has no function `measure`, and a profile can ask for it. Give it one, or "
                "set its spec to None."
            )
        found[workload.name] = workload
    return found


def find_workload(name: str) -> Workload:
    """Return the workload called `name`; ConfigError with a suggestion when there is none."""
    if name not in WORKLOADS:
        raise unknown_name("workload", name, WORKLOADS)
    return WORKLOADS[name]


def is_cost(name: str) -> bool:
    """Return whether the workload called `name`, which is installed, measures cost."""
    return WORKLOADS[name].measures_cost


def replicate_of(record: Record) -> Replicate:
    """Return the unit of replication of a record; of a workload that is not installed here, as its record shows."""
    known = WORKLOADS.get(record.workload)
    if known is not None:
        return known.replicate
    return "document" if record.documents or record.point.task else "round"


def measures_cost(record: Record) -> bool:
    """Return whether a record is about cost, not about quality."""
    return replicate_of(record) == "round"


def code_of_parts(model: ModelConfig, workload: str) -> dict[str, str]:
    """Return the hashes of the source that only a model, and only a workload, runs, as records state them.

    The version of a library that computes a model stands beside the hash.
    """
    libraries = sorted({mixer.library for mixer in model.mixers if mixer.library is not None})
    versions = [f"{name} {package_version(name) or 'absent'}" for name in libraries]
    model_code = ", ".join([part_hash(model.modules), *versions])
    return {"model_code": model_code, "workload_code": find_workload(workload).code}
