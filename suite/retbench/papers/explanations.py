"""Printed costs of RetNet, and YOCO's memory, compared with analytical models: which follow from arithmetic.

A memory or a ratio is `explained` where the analytical value is near. A time or a rate is `allowed` where it is no
better than the device's datasheet permits; the note gives the share of the bound that was reached. Anything else is
`unexplained`: nothing that the paper states accounts for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.architectures.sizes import find_size
from retbench.mixers.mixer import WIDE_BYTES
from retbench.papers.papers import Number, find_datasheet, find_number
from retbench.planning.prediction import roofline

TOLERANCE = 0.05
"""Largest relative difference of an explained number."""
STEP_TOLERANCE = 0.1
"""Largest relative difference between the latency and the time per step that the throughput implies."""
POINT_TOLERANCE_BYTES = 0.2e9
"""Largest difference at a point of Figure 6(a): about 0.5 % of its axis, the error of the decoded values."""

BATCH_SIZE = 8
"""Batch size of Figure 6(a), derived from its slope."""
DTYPE = "bfloat16"
"""A 16-bit dtype, derived from the line of the weights in Figure 6(a)."""
STATE_BYTES = 2
"""Bytes per value of the retention state in the paper's models, instead of the 4 of this package."""
CONTEXT_LEN = 8192
NUM_GPUS = 8
CHUNK_SIZE = 512
DEVICE = "a100-80gb"

YOCO_FFN, YOCO_KV_HEADS = 8192, 8
"""Widths of YOCO's 3B model, arXiv:2405.05254, Table 7, and of the Transformer that it is compared with."""
YOCO_CONTEXTS = tuple(2**power for power in range(15, 21))
"""Context lengths of YOCO's Figure 7."""


Outcome = Literal["explained", "allowed", "unexplained"]


@dataclass(frozen=True)
class Explanation:
    """One number of the paper with its analytical value, both in the base unit, and the assumptions in a note.

    The analytical value of a time or a rate is the best that the device allows.
    """

    place: str
    printed: float
    derived: float
    unit: str
    verdict: Outcome
    note: str


def explain_paper() -> list[Explanation]:
    """Compare every number of cost of the RetNet paper that an analytical model covers, and the memory of YOCO."""
    return [*_memory(), *_speed(), *_ratios(), *_training(), *_yoco_memory()]


def _equal(
    name: str,
    derived: float,
    note: str,
    *,
    share: float = TOLERANCE,
    absolute: float | None = None,
    paper: str = "retnet",
) -> Explanation:
    """Compare a number with its analytical value; it is near by its share, or by an absolute difference."""
    number = find_number(f"{paper}/{name}")
    tolerance = share if absolute is None else absolute / number.value
    is_near = abs(derived / number.value - 1) <= tolerance
    return _explanation(number, derived, "explained" if is_near else "unexplained", note)


def _bounded(name: str, bound: float, note: str) -> Explanation:
    """Compare a time or a rate with the best that the device allows."""
    number = find_number(f"retnet/{name}")
    share = bound / number.value if number.unit == "s" else number.value / bound
    note = f"{note}; {100 * share:.0f} % of it was reached"
    return _explanation(number, bound, "allowed" if share <= 1 else "unexplained", note)


def _explanation(number: Number, derived: float, verdict: Outcome, note: str) -> Explanation:
    return Explanation(number.place, number.value, derived, number.unit, verdict, note)


def _pair(size: str) -> tuple[ModelConfig, ModelConfig]:
    """Return RetNet and Transformer in the paper's shapes."""
    known, published = named_specs(), {"ffn_dim": "published"}
    retnet = known["retnet-paper"].model_copy(update=published)
    transformer = known["transformer-gpt"].model_copy(update=published)
    return resolve_model(retnet, size), resolve_model(transformer, size)


def _weights(model: ModelConfig) -> int:
    """Return the bytes of weights with one table for embedding and head, as in Figure 6(a)."""
    return costs.weight_bytes(model, DTYPE) - model.vocab_size * model.d_model * 2


def _retention_state(model: ModelConfig) -> int:
    """Return the bytes of the state of the batch at `STATE_BYTES` per value."""
    state = costs.state_bytes(model, DTYPE, BATCH_SIZE, 0)
    return state * STATE_BYTES // WIDE_BYTES[DTYPE]


def _totals(context_len: int) -> tuple[int, int]:
    """Return the bytes of weights and state of RetNet and of the Transformer at 6.7B."""
    retnet, transformer = _pair("6.7b")
    cache = costs.state_bytes(transformer, DTYPE, BATCH_SIZE, context_len)
    return _weights(retnet) + _retention_state(retnet), _weights(transformer) + cache


def _memory() -> Iterator[Explanation]:
    """Compare Figure 6(a) and the text about it."""
    retnet, transformer = _pair("6.7b")
    weights, state = _weights(retnet), _retention_state(retnet)
    vocabulary = f"{find_size('6.7b').vocab_size:,}"
    note = (
        f"2 bytes per parameter, with one table of {vocabulary} words for embedding and head; this number was chosen "
        "to give this line"
    )
    yield _equal("figure6a_weights/weights/value", weights, note)
    note = (
        f"keys and values of a token in 2 bytes, multi-head attention, {BATCH_SIZE} sequences; this number was derived "
        "from this slope"
    )
    yield _equal(
        "figure6a_slope/transformer/value", costs.state_bytes(transformer, DTYPE, BATCH_SIZE, 1), note
    )
    note = "weights and cache at batch 8; a line through the figure's points begins below the weights"
    for context_len in (2048, CONTEXT_LEN):
        total = _totals(context_len)[1]
        yield _equal(f"figure6a/transformer/{context_len}", total, note, absolute=POINT_TOLERANCE_BYTES)
    note = "weights and a 2-byte state at batch 8; the figure leaves out more than half of the state"
    total = _totals(CONTEXT_LEN)[0]
    yield _equal(f"figure6a/retnet/{CONTEXT_LEN}", total, note, absolute=POINT_TOLERANCE_BYTES)
    note = "a 2-byte state at batch 8; the figure leaves room for less than half of it"
    yield _equal("figure6a_state/figure/value", state, note)
    yield _equal("text_above_weights/retnet/value", state / weights, "the same state over the weights")


def _speed() -> Iterator[Explanation]:
    """Compare Figures 6(b) and 6(c), on one A100."""
    step_time = roofline(find_datasheet(DEVICE).ceilings(DTYPE), DTYPE)
    bound = f"bound at batch {BATCH_SIZE}"
    with_state = f"{bound}, with a state of {WIDE_BYTES[DTYPE]} bytes per value"
    implied = f"the latency that the throughput implies at batch {BATCH_SIZE}"
    retnet, transformer = _pair("6.7b")
    for row, model, note in (("retnet", retnet, with_state), ("transformer", transformer, bound)):
        for context_len in (2048, CONTEXT_LEN):
            rate = BATCH_SIZE / step_time(model, BATCH_SIZE, context_len)
            yield _bounded(f"figure6b/{row}/{context_len}", rate, note)
        latency = f"figure6c_{row}/{CONTEXT_LEN}/{BATCH_SIZE}"
        yield _bounded(latency, step_time(model, BATCH_SIZE, CONTEXT_LEN), note)
        throughput = find_number(f"retnet/figure6b/{row}/{CONTEXT_LEN}").value
        yield _equal(latency, BATCH_SIZE / throughput, implied, share=STEP_TOLERANCE)


def _ratios() -> Iterator[Explanation]:
    """Compare the labels of Figure 1, and the saving of the text."""
    retnet, transformer = _totals(CONTEXT_LEN)
    yield _equal("figure1_labels/memory/value", transformer / retnet, "weights and state at batch 8")
    yield _equal("text_memory/saved/value", 1 - retnet / transformer, "weights and state at batch 8")
    step_time = roofline(find_datasheet(DEVICE).ceilings(DTYPE), DTYPE)
    times = [step_time(model, BATCH_SIZE, CONTEXT_LEN) for model in _pair("6.7b")]
    note = "accounted for by the bytes of a step at batch 8; the rest depends on how both were run, which is not stated"
    for label in ("throughput", "latency"):
        yield _equal(f"figure1_labels/{label}/value", times[1] / times[0], note)


def _training() -> Iterator[Explanation]:
    """Compare Table 4: tokens per second on eight A100."""
    peak = NUM_GPUS * find_datasheet(DEVICE).ceilings(DTYPE).matmul_flops_per_s
    for size in ("1.3b", "2.7b", "6.7b", "13b"):
        retnet, transformer = _pair(size)
        rows = (("retnet", retnet), ("transformer_flash", transformer), ("transformer", transformer))
        for row, model in rows:
            flops = (
                costs.training_flops(model, 1, CONTEXT_LEN, model.mixer.default_form, CHUNK_SIZE)
                / CONTEXT_LEN
            )
            yield _bounded(f"table4_throughput/{row}/{size}", peak / flops, "bound of eight GPUs in bfloat16")


def _yoco_memory() -> Iterator[Explanation]:
    """Compare Figure 7 of YOCO, and its memory in the text: 3B, one sequence, 32K to 1M tokens."""
    published = {"ffn_dim": YOCO_FFN, "num_kv_heads": YOCO_KV_HEADS}
    yoco, transformer = (
        resolve_model(named_specs()[name].model_copy(update=published), "yoco-3b")
        for name in ("yoco", "transformer")
    )
    longest = YOCO_CONTEXTS[-1]
    totals = {
        context_len: [
            _weights(model) + costs.state_bytes(model, DTYPE, 1, context_len) for model in (yoco, transformer)
        ]
        for context_len in YOCO_CONTEXTS
    }
    used = "weights (one table for embedding and head) and cache in 2 bytes, one sequence"
    note = f"{used}, states in {WIDE_BYTES[DTYPE]}; the printed number leaves 1.8 GB for temporaries"
    yield _equal(f"text_memory/yoco/{longest}", totals[longest][0], note, paper="yoco")
    printed = find_number(f"yoco/text_memory/yoco/{longest}").value
    note = f"{used}: the Transformer's over the memory that is printed for YOCO"
    yield _equal(f"figure7/advantage/{longest}", totals[longest][1] / printed, note, paper="yoco")
    note = f"{used}: of both models; temporaries, which the paper does not state, are left out"
    for context_len, (own, theirs) in totals.items():
        yield _equal(f"figure7/advantage/{context_len}", theirs / own, note, paper="yoco")
