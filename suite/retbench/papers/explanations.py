"""Printed costs of RetNet, and YOCO's memory, compared with analytical models: which follow from arithmetic.

A memory or a ratio is `explained` where the analytical value is near. A time or a rate is `allowed` where it is no
better than the device's datasheet permits; the note gives the share of the bound that was reached. Anything else is
`unexplained`: nothing that the paper states accounts for it.

The time of every published decode step, of Mamba's Transformer too, is split into the bound of the device, the launches
of kernels, and a remainder that nothing stated accounts for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from retbench.architectures import costs
from retbench.architectures.configs import ModelConfig
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.architectures.sizes import find_size
from retbench.mixers.mixer import WIDE_BYTES
from retbench.papers.papers import Number, Sheet, find_datasheet, find_number, load_papers
from retbench.planning.prediction import OperatorCount, roofline
from retbench.units import PRINTED_UNITS, format_printed

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
MAMBA_DEVICE = "a100-80gb-pcie"
MAMBA_CONTEXT_LEN = 2048 + 128 // 2
"""Mean depth of the steps of Mamba's Figure 8: 128 tokens after a prompt of 2,048."""
MAMBA_TRANSFORMER = "transformer_1.3b"
"""The row of Mamba's Figure 8 whose model is known here, by its shape; Mamba itself is not."""

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

    @property
    def derived_text(self) -> str:
        """The analytical value in the unit in which the paper prints the number."""
        unit = _sheet(self.place).unit
        return format_printed(float(f"{self.derived / PRINTED_UNITS[unit][0]:.4g}"), unit)


@dataclass(frozen=True)
class PublishedStep:
    """One published time of a decode step, or the one that a published throughput implies, in seconds.

    Attributes:
        place: PAPER/SHEET/ROW/COLUMN of the number.
        model: Row of the model in the paper.
        batch_size: Sequences; derived for Figure 6(b).
        context_len: Tokens before the step.
        step_s: Published time.
        bound_s: Least time by the device's datasheet.
        launches_s: Time of the kernels of this package's eager step, at the cost of a kernel in a CUDA graph; None
            where they were not counted.
    """

    place: str
    model: str
    batch_size: int
    context_len: int
    step_s: float
    bound_s: float
    launches_s: float | None

    @property
    def remainder_s(self) -> float:
        """Published time that neither the bound nor the launches account for."""
        return self.step_s - self.bound_s - (self.launches_s or 0.0)


def _sheet(place: str) -> Sheet:
    """Return the sheet of a number."""
    paper, sheet = place.split("/")[:2]
    return load_papers()[paper].sheets[sheet]


def explain_paper() -> list[Explanation]:
    """Compare the costs of the RetNet paper that an analytical model covers but the steps, and the memory of YOCO."""
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
    notes = {
        "retnet": "weights and a 2-byte state at batch 8; the figure leaves out more than half of the state",
        "transformer": "weights and cache at batch 8; a line through the figure's points begins below the weights",
    }
    for row in notes:
        for column in _sheet("retnet/figure6a").columns:
            total = _totals(int(column))[list(notes).index(row)]
            place = f"figure6a/{row}/{column}"
            yield _equal(place, total, notes[row], absolute=POINT_TOLERANCE_BYTES)
    note = "a 2-byte state at batch 8; the figure leaves room for less than half of it"
    yield _equal("figure6a_state/figure/value", state, note)
    yield _equal("text_above_weights/retnet/value", state / weights, "the same state over the weights")


def _speed() -> Iterator[Explanation]:
    """Compare Figure 6(c) with the latency that the throughput of Figure 6(b) implies, where both have a length."""
    note = f"the latency that the throughput implies at batch {BATCH_SIZE}"
    for row in ("retnet", "transformer"):
        lengths = _sheet(f"retnet/figure6c_{row}").rows
        for length in filter(_sheet("retnet/figure6b").columns.__contains__, lengths):
            throughput = find_number(f"retnet/figure6b/{row}/{length}").value
            latency = f"figure6c_{row}/{length}/{BATCH_SIZE}"
            yield _equal(latency, BATCH_SIZE / throughput, note, share=STEP_TOLERANCE)


def published_models() -> dict[str, tuple[ModelConfig, str]]:
    """Return the models of published decode steps by row, each with its backend, in the papers' shapes."""
    known = named_specs()
    retnet, transformer = known["retnet-paper"], known["transformer-gpt"]
    return {
        "retnet": (_pair("6.7b")[0], retnet.backend),
        "transformer": (_pair("6.7b")[1], transformer.backend),
        MAMBA_TRANSFORMER: (_pair("1.3b")[1], transformer.backend),
    }


def explain_steps(operators: Mapping[str, OperatorCount] | None) -> list[PublishedStep]:
    """Split every published time of a decode step into bound, launches and remainder.

    RetNet's Figures 6(b) and 6(c), and the Transformer of Mamba's Figure 8, in 16 bits (which neither paper states).

    Args:
        operators: Kernels of an eager step of each of `published_models`; None if they were not counted.
    """
    found: list[PublishedStep] = []
    models = published_models()

    def add(place: str, row: str, device: str, batch_size: int, context_len: int) -> None:
        number, sheet = find_number(place), find_datasheet(device)
        bound = roofline(sheet.ceilings(DTYPE), DTYPE)
        step_s = number.value if number.unit == "s" else batch_size / number.value
        bound_s = bound(models[row][0], batch_size, context_len)
        launches_s = operators[row].total * sheet.kernel_s if operators else None
        found.append(PublishedStep(place, row, batch_size, context_len, step_s, bound_s, launches_s))

    for row in ("retnet", "transformer"):
        for column in _sheet("retnet/figure6b").columns:
            add(f"retnet/figure6b/{row}/{column}", row, DEVICE, BATCH_SIZE, int(column))
    for row in ("retnet", "transformer"):
        latencies = _sheet(f"retnet/figure6c_{row}")
        for length in latencies.rows:
            for column in latencies.columns:
                add(f"retnet/figure6c_{row}/{length}/{column}", row, DEVICE, int(column), int(length))
    for column in _sheet("mamba/decode_throughput").columns:
        place = f"mamba/decode_throughput/{MAMBA_TRANSFORMER}/{column}"
        add(place, MAMBA_TRANSFORMER, MAMBA_DEVICE, int(column), MAMBA_CONTEXT_LEN)
    return found


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
