"""Claims of papers as data: each statement, its conditions, and the rule by which records decide it.

The claims are in `claims.toml` in this package; `retbench.report.claims.judge` judges them. An architecture is a plain
name: a claim may be about one that is not installed.
"""

import tomllib
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from retbench.architectures.recorded import config_facts, is_standard
from retbench.config.dtypes import Dtype
from retbench.papers.papers import find_number, read_data, validate
from retbench.records.record import Record
from retbench.strict import Strict

Verdict = Literal["reproduced", "partly", "not_reproduced", "not_testable"]
Feature = Literal["fused", "grouped", "graphs"]
"""Features of a strong baseline: a fused attention kernel, fewer key-value heads than query heads, and steps that run
from a CUDA graph or a compiler."""


class Side(Strict):
    """Selects the records of one model; a plain string in the file is the name of an architecture."""

    architecture: str
    name: str | None = None
    """Name in the experiment file; if absent, any standard model of the architecture, so no ablation."""
    backend: str | None = None
    """Requested backend; any when absent."""
    checkpoint: str | None = None
    """Requested source of the weights; any when absent."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"architecture": data} if isinstance(data, str) else data

    def has(self, record: Record) -> bool:
        """Return whether a record belongs to this side."""
        model = record.model
        is_named = is_standard(model) if self.name is None else self.name == model.name
        return (
            model.architecture == self.architecture
            and is_named
            and self.backend in (None, record.settings.get("backend"))
            and self.checkpoint in (None, model.weights and model.weights.source)
        )


class _CostRule(Strict):
    """A rule on the records of one workload."""

    workload: str
    challenger: Side
    """The model that the claim is about."""

    def covers(self, record: Record) -> bool:
        """Return whether a record can bear on the rule."""
        return record.workload == self.workload


class RatioRule(_CostRule):
    """A cost of one model over that of another at one point is at least as good as printed."""

    kind: Literal["ratio"]
    metric: str
    better: Literal["lower", "higher"]
    batch_size: int
    context_len: int
    saved: bool = False
    """The printed number is the share that is saved: 0.7 is an advantage of 3.3."""
    reference: Side


class _RangeRule(_CostRule):
    """A rule on a metric along a range."""

    metric: str
    along: Literal["context_len", "batch_size"] = "context_len"
    within: tuple[int, int]
    """Range of the paper."""
    at: int
    """Value of the other coordinate."""


class LevelRule(_RangeRule):
    """A cost is the same at the last point of a range as at the first."""

    kind: Literal["level"]
    margin: float | None = Field(default=None, gt=0, lt=1)
    """Half-width of what counts as the same; the margin of the report when absent."""


class GrowsRule(_RangeRule):
    """A cost grows along the range; where `linear`, in a straight line."""

    kind: Literal["grows"]
    linear: bool = False


class ShareRule(_CostRule):
    """Some parts of a cost are at most a share of another cost."""

    kind: Literal["share"]
    parts: tuple[str, ...]
    of: str
    batch_size: int
    context_len: int


class GateRule(Strict):
    """All execution modes of a model are numerically equivalent."""

    kind: Literal["gate"]
    challenger: Side

    def covers(self, record: Record) -> bool:
        """Return True: the equivalence check precedes every workload."""
        return True


class AheadRule(Strict):
    """One model is better than another on the same documents, in every evaluation."""

    kind: Literal["ahead"]
    workload: Literal["perplexity", "zeroshot"]
    tasks: tuple[str, ...] = ()
    """All measured tasks when empty; of perplexity, the names that one text may have."""
    protocol: str | None = None
    context_lens: tuple[int, ...] = ()
    longest_context: int | None = None
    """Longest context that counts, as in `CrossesRule`; any when absent."""
    num_fewshot: int | None = None
    challenger: Side
    reference: Side

    def covers(self, record: Record) -> bool:
        """Return whether a record belongs to an evaluation of the rule."""
        point = record.point
        return (
            record.workload == self.workload
            and (not self.tasks or point.task in self.tasks)
            and self.protocol in (None, point.protocol)
            and (not self.context_lens or point.context_len in self.context_lens)
            and (self.longest_context is None or point.context_len <= self.longest_context)
            and self.num_fewshot in (None, point.num_fewshot)
        )


class CrossesRule(Strict):
    """One model is worse than another at small sizes and better at large ones."""

    kind: Literal["crosses"]
    behind_at: tuple[str, ...]
    ahead_at: tuple[str, ...]
    protocols: tuple[str, ...]
    longest_context: int
    """Longest context that counts: beyond their training length, models extrapolate."""
    challenger: Side
    reference: Side

    def covers(self, record: Record) -> bool:
        """Return whether a record is a perplexity by one of the protocols, within the training length."""
        is_within = record.point.context_len <= self.longest_context
        return record.workload == "perplexity" and record.point.protocol in self.protocols and is_within


class NearRule(Strict):
    """A metric is what the paper prints, within a tolerance."""

    kind: Literal["near"]
    workload: str
    task: str
    metric: str
    tolerance: float = Field(gt=0, lt=1)
    checkpoint: str
    """Requested source of the weights."""

    def covers(self, record: Record) -> bool:
        """Return whether a record measures the task."""
        return (record.workload, record.point.task) == (self.workload, self.task)


class SlicesRule(Strict):
    """One model loses to another on words of repeated pairs, and there more than on words of new ones."""

    kind: Literal["slices"]
    longest_document: int
    """Most tokens of a document, on average, that count: beyond their training length, models extrapolate."""
    challenger: Side
    reference: Side

    def covers(self, record: Record) -> bool:
        """Return whether a record scores repeated and new pairs apart, within the training length."""
        counts = [record.metrics.get(name) for name in ("num_tokens", "num_documents")]
        tokens, documents = (count.value if count else 0.0 for count in counts)
        return record.workload == "recall_slices" and tokens <= self.longest_document * documents


CostRule = RatioRule | LevelRule | GrowsRule | ShareRule | GateRule
QualityRule = AheadRule | CrossesRule | NearRule | SlicesRule
Rule = Annotated[CostRule | QualityRule, Field(discriminator="kind")]


class Scale(Strict):
    """The paper's own conditions, as far as records can meet them."""

    size: str | None = None
    hardware: tuple[str, ...] = ()
    """Parts of the GPU's name, of which a slice (MIG) is none; any device when empty."""
    dtypes: tuple[Dtype, ...] = ()
    """Accepted dtypes; any when empty."""
    chunk_size: int | None = None
    """Chunk size of the chunkwise form; any when absent."""
    config: dict[Literal["num_kv_heads", "ffn_dim"], int] = Field(default_factory=dict)
    """Key-value heads of all attention, and width of the feed-forward networks, on both sides; any when absent."""
    num_tokens: int | None = None
    """Fewest tokens that the models were trained on."""
    context_len: int | None = None
    """Shortest context of an evaluation."""
    text: str | None = None
    """Text that the claim names and that no corpus of this package is: then no record has the paper's conditions."""
    having: tuple[Feature, ...] = ()
    without: tuple[Feature, ...] = ()

    def holds(self, record: Record) -> bool:
        """Return whether a record has the size, the device, a dtype and the chunk size."""
        gpu = record.environment.get("gpu")
        facts = gpu if isinstance(gpu, dict) else {"name": "cpu"}
        device = str(facts.get("name"))
        # The name of a slice begins with that of the GPU: NVIDIA A100-SXM4-80GB MIG 3g.40gb.
        is_slice = facts.get("mig_mode") is True or "MIG" in device.split()
        return (
            self.size in (None, record.model.size)
            and (not self.hardware or not is_slice)
            and all(part in device for part in self.hardware)
            and (not self.dtypes or record.settings.get("dtype") in self.dtypes)
            and self.chunk_size in (None, record.settings.get("chunk_size"))
        )

    def has_config(self, record: Record) -> bool:
        """Return whether all parts of a record's model that have these fields have these values."""
        facts = config_facts(record.model) if self.config else {}
        return all(
            {value for name, value in facts.items() if name.rpartition(".")[2] == field} == {wanted}
            for field, wanted in self.config.items()
        )


class Awaited(Strict):
    """Parts that this package lacks and that a verdict needs; once one of them exists, it is removed here."""

    workloads: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


class Claim(Strict):
    """One claim."""

    name: str
    statement: str
    source: str
    """Paper and table or figure."""
    note: str | None = None
    """Remark that is printed with every result: what the result does not show."""
    numbers: tuple[str, ...] = ()
    """Places in the papers' data; a rule that compares with a printed number takes the first."""
    experiments: tuple[str, ...] = ()
    """Experiments whose records may bear on the claim; all when empty."""
    rule: Rule | None = None
    scale: Scale = Scale()
    strong: tuple[Feature, ...] = ()
    """Features of the baseline in the second verdict; no second verdict when empty."""
    needs: str | None = None
    """Requirements of a run under the paper's conditions."""
    command: str | None = None
    strong_command: str | None = None
    awaits: Awaited | None = None
    """Workloads and architectures without which no run of this package can decide the claim yet."""
    untestable: str | None = None
    """Reason why no run of this package can decide the claim."""
    headline: bool = False
    """True for a claim of the short table."""

    @model_validator(mode="after")
    def _complete(self) -> "Claim":
        if (self.rule is None and self.awaits is None) != (self.untestable is not None):
            raise ValueError(
                "a claim has a rule, the parts that it awaits, or the reason why it cannot be tested"
            )
        if self.awaits is not None and not (self.awaits.workloads or self.awaits.architectures):
            raise ValueError("'awaits' names neither a workload nor an architecture")
        if (self.rule is None or self.awaits is not None) == bool(self.command or self.needs):
            raise ValueError("a claim that can be tested, and no other, has 'needs' and 'command'")
        if bool(self.command) != bool(self.needs):
            raise ValueError("a claim with a rule says what it needs and which command makes its records")
        if bool(self.strong) != (self.strong_command is not None):
            raise ValueError("a claim has both a second verdict and its command, or neither")
        if self.rule is not None and self.rule.kind in ("ratio", "share", "near") and not self.numbers:
            raise ValueError(
                f"a rule '{self.rule.kind}' is compared with a printed number; add it to 'numbers'"
            )
        for place in self.numbers:
            find_number(place)
        return self

    @property
    def printed(self) -> float:
        """Number that measurements are compared with, in its base unit."""
        return find_number(self.numbers[0]).value

    def covers(self, record: Record) -> bool:
        """Return whether a record can bear on the claim."""
        is_listed = not self.experiments or record.experiment in self.experiments
        return self.rule is not None and is_listed and self.rule.covers(record)


@cache
def load_claims() -> tuple[Claim, ...]:
    """Return every claim in the order of the file; ConfigError where the file is invalid."""
    return parse_claims(read_data("claims.toml"))


def parse_claims(text: str) -> tuple[Claim, ...]:
    """Return the claims of a TOML text; ConfigError where it holds something unknown or contradictory."""
    tables = tomllib.loads(text)
    return tuple(validate(Claim, name, fields, f"claims.toml: {name}") for name, fields in tables.items())
