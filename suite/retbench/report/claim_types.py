"""The claims of the papers as data: what each says, under which conditions, and by which rule it is judged.

They stand in `claims.toml` beside this module. A rule is one of a few kinds; how each is judged is in
`cost_judgements` and `quality_judgements`.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from retbench.config.experiment import Dtype
from retbench.errors import ConfigError
from retbench.papers.papers import find_number
from retbench.records.record import Record
from retbench.report.comparisons import LEVEL_MARGIN
from retbench.strict import Strict, explain

Verdict = Literal["reproduced", "partly", "not_reproduced", "not_testable"]
Feature = Literal["fused", "grouped", "graphs"]
"""What makes a Transformer a strong baseline: a fused attention kernel, fewer key and value heads than queries', and
steps from a CUDA graph or a compiler."""


class Side(Strict):
    """Which model of an experiment a rule is about."""

    architecture: Literal["retnet", "transformer"]
    name: str | None = None
    """In the experiment's file; when absent any of the architecture, and of RetNet's any that lacks nothing of it."""
    backend: str | None = None
    """Asked for."""
    checkpoint: str | None = None
    """Whose weights, as it was asked for; any when absent."""

    def has(self, record: Record) -> bool:
        """Whether a record is of this side."""
        return (
            record.model.architecture == self.architecture
            and (_is_whole(record) if self.name is None else self.name == record.model.name)
            and self.backend in (None, record.settings.get("backend"))
            and self.checkpoint in (None, record.model.weights and record.model.weights.source)
        )


def _is_whole(record: Record) -> bool:
    """Whether a model is what its paper says: of RetNet, fixed decays of several scales, a swish gate, head norms."""
    if record.model.architecture != "retnet":
        return True
    config = record.model.config
    has_parts = config.get("swish_gate", True) and config.get("head_norm", True)
    return has_parts and config.get("decay", "eq8") in ("eq8", "paper")


RETNET, TRANSFORMER = Side(architecture="retnet"), Side(architecture="transformer")


class RatioRule(Strict):
    """A cost of one model over that of another at one point is at least what the paper prints."""

    kind: Literal["ratio"]
    workload: str
    metric: str
    better: Literal["lower", "higher"]
    batch_size: int
    context_len: int
    saved: bool = False
    """The printed number is the share that is saved: 0.7 is an advantage of 3.3."""
    challenger: Side = RETNET
    reference: Side = TRANSFORMER


class LevelRule(Strict):
    """A cost is the same at the last point of a range as at the first."""

    kind: Literal["level"]
    workload: str
    metric: str
    along: Literal["context_len", "batch_size"]
    within: tuple[int, int]
    """The range of the paper."""
    at: int
    """The other coordinate."""
    margin: float = Field(default=LEVEL_MARGIN, gt=0, lt=1)
    """Half-width of what counts as the same."""
    challenger: Side = RETNET


class GrowsRule(Strict):
    """A cost grows with the context, and where it says so in a straight line."""

    kind: Literal["grows"]
    workload: str
    metric: str
    batch_size: int
    within: tuple[int, int]
    linear: bool = False
    challenger: Side = TRANSFORMER


class ShareRule(Strict):
    """Some parts of a cost are at most a share of another."""

    kind: Literal["share"]
    workload: str
    parts: tuple[str, ...]
    of: str
    batch_size: int
    context_len: int
    challenger: Side = RETNET


class AheadRule(Strict):
    """One model is better than another on the same documents, at every question."""

    kind: Literal["ahead"]
    workload: Literal["perplexity", "zeroshot"]
    tasks: tuple[str, ...] = ()
    """All that were asked when empty."""
    protocol: str | None = None
    context_lens: tuple[int, ...] = ()
    num_fewshot: int | None = None
    challenger: Side = RETNET
    reference: Side = TRANSFORMER


class CrossesRule(Strict):
    """One model is behind another at small sizes and ahead at large ones."""

    kind: Literal["crosses"]
    behind_at: tuple[str, ...]
    ahead_at: tuple[str, ...]
    protocols: tuple[str, ...]
    longest_context: int
    """Up to which a question counts: beyond the length that models were trained at, they are asked something else."""
    challenger: Side = RETNET
    reference: Side = TRANSFORMER


class NearRule(Strict):
    """A metric is what the paper prints, within a tolerance."""

    kind: Literal["near"]
    workload: str
    task: str
    metric: str
    tolerance: float = Field(gt=0, lt=1)
    checkpoint: str
    """Whose metric it is, as it was asked for."""


class GateRule(Strict):
    """All forms of a model are one function."""

    kind: Literal["gate"]
    challenger: Side = RETNET


CostRule = RatioRule | LevelRule | GrowsRule | ShareRule | GateRule
QualityRule = AheadRule | CrossesRule | NearRule
Rule = Annotated[CostRule | QualityRule, Field(discriminator="kind")]


class Scale(Strict):
    """The paper's own conditions, as far as records can meet them."""

    size: str | None = None
    hardware: tuple[str, ...] = ()
    """Parts of a GPU's name; any device when empty."""
    dtypes: tuple[Dtype, ...] = ()
    """Of which the models' is one; any when empty."""
    chunk_size: int | None = None
    """Of the chunkwise form; any when absent."""
    num_tokens: int | None = None
    """That models were trained on, at least."""
    context_len: int | None = None
    """That questions of quality have, at least."""
    having: tuple[Feature, ...] = ()
    without: tuple[Feature, ...] = ()

    def holds(self, record: Record) -> bool:
        """Whether a record is of the size, of the device, of a dtype and of the chunk."""
        gpu = record.environment.get("gpu")
        device = str(gpu.get("name")) if isinstance(gpu, dict) else "cpu"
        return (
            self.size in (None, record.model.size)
            and all(part in device for part in self.hardware)
            and (not self.dtypes or record.settings.get("dtype") in self.dtypes)
            and self.chunk_size in (None, record.settings.get("chunk_size"))
        )


class Claim(Strict):
    """One claim."""

    name: str
    statement: str
    source: str
    """Paper and table or figure."""
    numbers: tuple[str, ...] = ()
    """Places in the papers' data; a rule that holds a measurement against a number takes the first."""
    experiments: tuple[str, ...] = ()
    """Whose records may bear on it; all when empty."""
    rule: Rule | None = None
    scale: Scale = Scale()
    strong: tuple[Feature, ...] = ()
    """What the Transformer has in the second answer; no second answer when empty."""
    needs: str | None = None
    """What a run under the paper's conditions takes."""
    command: str | None = None
    strong_command: str | None = None
    untestable: str | None = None
    """Why no run of this package can tell."""
    headline: bool = False
    """Whether the short table has it."""

    @model_validator(mode="after")
    def _whole(self) -> "Claim":
        if (self.rule is None) != (self.untestable is not None):
            raise ValueError("a claim has either a rule or the reason why it cannot be tested")
        if self.rule is not None and not (self.command and self.needs):
            raise ValueError("a claim with a rule says what it needs and which command makes its records")
        if bool(self.strong) != (self.strong_command is not None):
            raise ValueError("a claim has a second answer with its command, or neither")
        if self.rule is not None and self.rule.kind in ("ratio", "share", "near") and not self.numbers:
            raise ValueError(f"a rule '{self.rule.kind}' is held against a number")
        for place in self.numbers:
            find_number(place)
        return self

    @property
    def printed(self) -> float:
        """The number that the measurement is held against, in its base unit."""
        return find_number(self.numbers[0]).value


@dataclass(frozen=True)
class Finding:
    """What records say of a claim.

    Attributes:
        verdict: `not_testable` where they bear on it and cannot decide it.
        text: The numbers, in a sentence.
    """

    verdict: Verdict
    text: str


@cache
def load_claims() -> tuple[Claim, ...]:
    """Every claim in the order of the file; ConfigError where the file is not what it should be."""
    text = resources.files("retbench.papers").joinpath("claims.toml").read_text(encoding="utf-8")
    return parse_claims(text)


def parse_claims(text: str) -> tuple[Claim, ...]:
    """The claims that a TOML text holds; ConfigError where it holds something unknown or contradictory."""
    found = []
    for name, fields in tomllib.loads(text).items():
        try:
            found.append(Claim.model_validate({"name": name, **fields}))
        except ValidationError as error:
            raise ConfigError(explain(error, Claim, f"claims.toml: {name}")) from error
    return tuple(found)
