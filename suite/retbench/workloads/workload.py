"""What a workload is to the rest of the package: its table in a profile, its metrics, and how it is run.

Nothing here imports torch. The function that measures is named, and imported by the worker only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from retbench.errors import unknown_name

if TYPE_CHECKING:
    from retbench.workloads.context import Context, Measurement

Kind = Literal["cost", "quality"]
Replicate = Literal["round", "document", "seed"]


@dataclass(frozen=True)
class MetricSpec:
    """One metric of a workload.

    Attributes:
        name: As records hold it; it ends in its base unit.
        heading: Column heading in tables for people.
        lower_is_better: None where neither direction is an advantage.
        has_interval: Measured anew in each round, so that tables show its 95 % interval.
        optional: Left out of tables where no point has a value, because only some devices have it.
        better: How a model with the better value is described: "faster", "smaller".
    """

    name: str
    heading: str
    lower_is_better: bool | None = None
    has_interval: bool = False
    optional: bool = False
    better: str = ""


@dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
        name: Its name in records and in `[profiles.P.workloads.NAME]`.
        title: Heading of its figures and tables.
        kind: Whether it measures cost or quality.
        metrics: In the order of the table; the first is the primary one, by which models are compared.
        quantity: What the primary metric is, in a sentence: "time per output token".
        replicate: What its intervals are over.
        measure: "module:function" that measures one cell; imports torch. Empty for what `retbench train` records.
        one_round: Another round would only repeat the first.
        finds_batch: It finds a batch size instead of being given one, in a worker of its own for each cell.
        starts_from_state: Its cells start from a state of real text where the model's state can be streamed.
    """

    name: str
    title: str
    kind: Kind
    metrics: tuple[MetricSpec, ...]
    quantity: str
    replicate: Replicate = "round"
    measure: str = ""
    one_round: bool = False
    finds_batch: bool = False
    starts_from_state: bool = False

    @property
    def primary(self) -> MetricSpec:
        """The metric by which models are compared."""
        return self.metrics[0]

    def load(self) -> "Callable[[Context], Measurement]":
        """Return the function that measures a cell; this imports torch."""
        module, _, function = self.measure.partition(":")
        loaded: Callable[[Context], Measurement] = getattr(import_module(module), function)
        return loaded


_ENERGY = (
    MetricSpec(
        "energy_per_token_j", "energy per token", True, has_interval=True, optional=True, better="less energy"
    ),
    MetricSpec("power_w", "power", optional=True),
)
_TOKENS_PER_S = MetricSpec("tokens_per_s", "tokens/s", False, has_interval=True, better="more throughput")
_ROOFLINE = MetricSpec("roofline_ratio", "% of roofline", has_interval=True)
_WEIGHTS = MetricSpec("weight_bytes", "weights", True)
_WORKSPACE = MetricSpec("workspace_bytes", "workspace", True)
_PROCESS_PEAK = MetricSpec("process_peak_bytes", "process, peak", True)

_KNOWN = (
    Workload(
        name="decode",
        title="Decode latency",
        kind="cost",
        metrics=(
            MetricSpec("tpot_s", "time per token", True, has_interval=True, better="faster"),
            _TOKENS_PER_S,
            _ROOFLINE,
            MetricSpec("bandwidth_ratio", "% of bandwidth"),
            MetricSpec("bytes_per_step", "bytes per step", True),
            *_ENERGY,
        ),
        quantity="time per output token",
        measure="retbench.workloads.decode:measure",
        starts_from_state=True,
    ),
    Workload(
        name="prefill",
        title="Prefill latency",
        kind="cost",
        metrics=(
            MetricSpec("ttft_s", "time to first token", True, has_interval=True, better="faster"),
            _TOKENS_PER_S,
            _ROOFLINE,
            *_ENERGY,
        ),
        quantity="time to first token",
        measure="retbench.workloads.prefill:measure",
    ),
    Workload(
        name="memory",
        title="Memory of inference",
        kind="cost",
        metrics=(
            MetricSpec("peak_bytes", "weights + state + workspace", True, better="less memory"),
            _WEIGHTS,
            MetricSpec("state_bytes", "state or KV cache", True),
            _WORKSPACE,
            MetricSpec("expected_weight_bytes", "weights, analytical"),
            MetricSpec("expected_state_bytes", "state, analytical"),
            _PROCESS_PEAK,
        ),
        quantity="memory of weights, state and workspace",
        measure="retbench.workloads.memory:measure",
    ),
    Workload(
        name="training",
        title="Cost of a training step",
        kind="cost",
        metrics=(
            MetricSpec("step_s", "time per step", True, has_interval=True, better="faster"),
            _TOKENS_PER_S,
            MetricSpec("peak_bytes", "peak memory", True, better="less memory"),
            _ROOFLINE,
            _WEIGHTS,
            MetricSpec("gradient_bytes", "gradients", True),
            MetricSpec("optimizer_bytes", "optimizer", True),
            _WORKSPACE,
            _PROCESS_PEAK,
        ),
        quantity="time per training step",
        measure="retbench.workloads.training:measure",
    ),
    Workload(
        name="largest_batch",
        title="Largest batch",
        kind="cost",
        metrics=(
            MetricSpec("largest_batch", "largest batch", False, better="more sequences"),
            MetricSpec("largest_batch_step", "resolution"),
            MetricSpec("expected_largest_batch", "analytical"),
            MetricSpec("memory_limit_bytes", "memory limit"),
            MetricSpec("available_bytes", "left by libraries"),
        ),
        quantity="largest batch that fits",
        measure="retbench.workloads.largest_batch:measure",
        one_round=True,
        finds_batch=True,
    ),
    Workload(
        name="perplexity",
        title="Perplexity",
        kind="quality",
        metrics=(
            MetricSpec("bits_per_byte", "bits/byte", True, better="better"),
            MetricSpec("nats_per_token", "nats/token", True, better="better"),
            MetricSpec("word_perplexity", "word perplexity", True, better="better"),
        ),
        quantity="bits per byte",
        replicate="document",
        measure="retbench.workloads.perplexity:measure",
        one_round=True,
    ),
    Workload(
        name="zeroshot",
        title="Zero-shot tasks",
        kind="quality",
        metrics=(
            MetricSpec("acc", "accuracy", False, better="better"),
            MetricSpec("acc_norm", "accuracy, normalised by length", False, better="better"),
        ),
        quantity="accuracy",
        replicate="document",
        measure="retbench.workloads.zeroshot:measure",
        one_round=True,
    ),
    Workload(
        name="training_run",
        title="Training runs",
        kind="quality",
        metrics=(MetricSpec("validation_loss_nats", "validation loss, nats/token", True, better="better"),),
        quantity="validation loss",
        replicate="seed",
        one_round=True,
    ),
)
WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _KNOWN}


def find_workload(name: str) -> Workload:
    """Return the workload called `name`; ConfigError with a suggestion when there is none."""
    if name not in WORKLOADS:
        raise unknown_name("workload", name, WORKLOADS)
    return WORKLOADS[name]
