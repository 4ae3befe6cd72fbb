"""The RetNet paper's numbers of cost held against closed forms: which of them follow from arithmetic, and which do not.

A memory or a ratio is explained where the closed form gives it; a time is allowed where it is no shorter than what the
device's datasheet permits, and says then what share of that was reached. What is neither is unexplained: nothing that
the paper states accounts for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import resolve_model
from retbench.architectures.retnet import RetNetSpec
from retbench.architectures.sizes import find_size
from retbench.architectures.transformer import TransformerSpec
from retbench.mixers.mixer import WIDE_BYTES
from retbench.papers.datasheets import find_datasheet
from retbench.papers.papers import find_number
from retbench.planning.prediction import roofline

TOLERANCE = 0.05
"""Relative difference within which a closed form explains a number; most were read off figures."""
BARS_TOLERANCE = 0.1
"""The same where one reading is held against another."""
POINT_TOLERANCE_BYTES = 0.2e9
"""The same for a point of Figure 6(a): twice the error that its axis allows."""

BATCH_SIZE = 8
"""Of Figure 6(a), derived from its slope."""
DTYPE = "bfloat16"
"""Two bytes a value, derived from the line of the weights in Figure 6(a)."""
STATE_BYTES = 2
"""A value of the retention state, as the paper's models would have it; here it takes 4."""
CONTEXT_LEN = 8192
NUM_GPUS = 8
CHUNK_SIZE = 512
DEVICE = "a100-80gb"

Verdict = Literal["explained", "allowed", "unexplained"]


@dataclass(frozen=True)
class Explanation:
    """One number of the paper beside the arithmetic.

    Attributes:
        place: Of the number; see `paper.papers.find_number`.
        printed: In the base unit.
        derived: What the closed form gives; of a time or a rate the best that the device allows.
        unit: The base unit of both.
        verdict: What came of it.
        note: What was computed, and what stands between the two.
    """

    place: str
    printed: float
    derived: float
    unit: str
    verdict: Verdict
    note: str


def explain_paper() -> list[Explanation]:
    """Every number of cost of the RetNet paper that arithmetic says something about."""
    return [*_memory(), *_speed(), *_ratios(), *_training()]


def _equal(place: str, derived: float, note: str, tolerance: float = TOLERANCE) -> Explanation:
    """A number that the closed form should give."""
    number = find_number(place)
    near = abs(derived / number.value - 1) <= tolerance
    return Explanation(
        place, number.value, derived, number.unit, "explained" if near else "unexplained", note
    )


def _point(place: str, derived: float, note: str) -> Explanation:
    """A point of Figure 6(a), which was read more exactly than the share that is allowed of other numbers."""
    return _equal(place, derived, note, POINT_TOLERANCE_BYTES / find_number(place).value)


def _bounded(place: str, at_best: float, note: str) -> Explanation:
    """A time or a rate that cannot be better than the device allows."""
    number = find_number(place)
    share = at_best / number.value if number.unit == "s" else number.value / at_best
    verdict: Verdict = "allowed" if share <= 1 else "unexplained"
    return Explanation(
        place, number.value, at_best, number.unit, verdict, f"{note}; {100 * share:.0f} % of it was reached"
    )


def _pair(size: str) -> tuple[ModelConfig, ModelConfig]:
    """RetNet and Transformer in the paper's shapes."""
    retnet = RetNetSpec(architecture="retnet", variant="paper", ffn_dim="published")
    transformer = TransformerSpec(architecture="transformer", variant="gpt", ffn_dim="published")
    return resolve_model(retnet, size), resolve_model(transformer, size)


def _weights_with_one_table(model: ModelConfig) -> int:
    """Bytes of the weights where embedding and head share a table, as the line of Figure 6(a) has it."""
    return costs.weight_bytes(model, DTYPE) - model.vocab_size * model.d_model * 2


def _totals(context_len: int) -> tuple[int, int]:
    """Bytes of weights and state of RetNet and of the Transformer at 6.7B."""
    retnet, transformer = _pair("6.7b")
    cache = costs.state_bytes(transformer, DTYPE, BATCH_SIZE, context_len)
    return (
        _weights_with_one_table(retnet) + _retention_state(retnet),
        _weights_with_one_table(transformer) + cache,
    )


def _retention_state(model: ModelConfig) -> int:
    """Bytes of the state of the batch, in two bytes a value."""
    held = costs.state_bytes(model, DTYPE, BATCH_SIZE, 0)
    return held * STATE_BYTES // WIDE_BYTES[DTYPE]


def _memory() -> Iterator[Explanation]:
    """Figure 6(a) and what the text says of it."""
    retnet, transformer = _pair("6.7b")
    vocabulary = f"{find_size('6.7b').vocab_size:,}"
    state = _retention_state(retnet)
    yield _equal(
        "retnet/figure6a_weights/weights/value",
        _weights_with_one_table(retnet),
        f"2 bytes a parameter, with one table of {vocabulary} words for embedding and head, a number that was "
        "chosen to give this line",
    )
    yield _equal(
        "retnet/figure6a_slope/transformer/value",
        costs.state_bytes(transformer, DTYPE, BATCH_SIZE, 1),
        f"keys and values of a token in 2 bytes, no grouped-query attention, {BATCH_SIZE} sequences, a number that was "
        "derived from this slope",
    )
    for context_len in (2048, CONTEXT_LEN):
        yield _point(
            f"retnet/figure6a/transformer/{context_len}",
            _totals(context_len)[1],
            "weights and cache at batch 8; a line through the figure's points begins below the weights",
        )
    yield _point(
        f"retnet/figure6a/retnet/{CONTEXT_LEN}",
        _totals(CONTEXT_LEN)[0],
        "weights and a 2-byte state at batch 8, of which the figure leaves out more than half",
    )
    yield _equal(
        "retnet/figure6a_state/figure/value",
        state,
        "a 2-byte state at batch 8: the figure leaves room for less than half of it",
    )
    yield _equal(
        "retnet/text_above_weights/retnet/value",
        state / _weights_with_one_table(retnet),
        "the same, over the weights",
    )


def _speed() -> Iterator[Explanation]:
    """Figure 6(b) and the bars of Figure 1, on one A100."""
    step_time = roofline(find_datasheet(DEVICE).ceilings(DTYPE), DTYPE)
    for name, model in zip(("retnet", "transformer"), _pair("6.7b"), strict=True):
        note = f"at best at batch {BATCH_SIZE}"
        if name == "retnet":
            note += f", with a state of {WIDE_BYTES[DTYPE]} bytes a value"
        for context_len in (2048, CONTEXT_LEN):
            at_best = BATCH_SIZE / step_time(model, BATCH_SIZE, context_len)
            yield _bounded(f"retnet/figure6b/{name}/{context_len}", at_best, note)
        latency = f"retnet/figure1_latency/{name}/{CONTEXT_LEN}"
        yield _bounded(latency, step_time(model, BATCH_SIZE, CONTEXT_LEN), note)
        throughput = find_number(f"retnet/figure1_throughput/{name}/{CONTEXT_LEN}").value
        yield _equal(
            latency,
            BATCH_SIZE / throughput,
            f"what the bar of the throughput comes to at batch {BATCH_SIZE}",
            BARS_TOLERANCE,
        )


def _ratios() -> Iterator[Explanation]:
    """The labels of Figure 1, and the saving of the text."""
    retnet, transformer = _totals(CONTEXT_LEN)
    yield _equal("retnet/figure1_labels/memory/value", transformer / retnet, "weights and state at batch 8")
    yield _equal("retnet/text_memory/saved/value", 1 - retnet / transformer, "weights and state at batch 8")
    step_time = roofline(find_datasheet(DEVICE).ceilings(DTYPE), DTYPE)
    times = [step_time(model, BATCH_SIZE, CONTEXT_LEN) for model in _pair("6.7b")]
    for what in ("throughput", "latency"):
        yield _equal(
            f"retnet/figure1_labels/{what}/value",
            times[1] / times[0],
            "what the bytes of a step account for at batch 8; the rest is how the two were run, which is not stated",
        )


def _training() -> Iterator[Explanation]:
    """Table 4: tokens a second of eight A100."""
    peak = NUM_GPUS * find_datasheet(DEVICE).ceilings(DTYPE).matmul_flops_per_s
    for size in ("1.3b", "2.7b", "6.7b", "13b"):
        retnet, transformer = _pair(size)
        rows = (("retnet", retnet), ("transformer_flash", transformer), ("transformer", transformer))
        for row, model in rows:
            flops = costs.training_flops(model, 1, CONTEXT_LEN, CHUNK_SIZE) / CONTEXT_LEN
            yield _bounded(
                f"retnet/table4_throughput/{row}/{size}", peak / flops, "at best on eight GPUs in bfloat16"
            )
