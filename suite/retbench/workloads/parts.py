"""The parts of a decode step on a CPU, each timed apart from the others: what a prediction there is made of.

Each product is timed at its own shape, through weights that nothing has just read: copies of it are used in turn, as
many as have the bytes of the whole step, so that the caches hold of them what they would in a step. Attention and
retention are timed in the same way, on states of the given depth. What does not depend on sizes (launching operations,
norms, rotations) is the step of a model with as many blocks of hardly any width. No step of the model itself is timed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

from retbench import costs
from retbench.architectures import ModelConfig, RetNetConfig, TransformerConfig, parse_model_config
from retbench.measure.clock import time_steps
from retbench.models.attention import BACKENDS
from retbench.models.build import INIT_STD, allocate_model, build_model
from retbench.models.linear import Linear
from retbench.models.retention import retention_step_, wide_dtype
from retbench.prediction import StepParts

WARMUP_S = 0.2
NUM_SAMPLES = 20
"""Steps of the narrow model, and passes over the copies of a part, of which the median counts."""

NARROW_HEAD_DIM = 16
NARROW_DEPTH = 1
MIN_COPIES, MAX_COPIES = 8, 1024
"""Of a part that is timed: enough for the clock, and no more than caches tell apart."""

CPU = torch.device("cpu")


@torch.inference_mode()
def measure_parts(
    config: ModelConfig, dtype: str, batch_size: int, lengths: Sequence[int], *, backend: str
) -> StepParts:
    """Times of the parts of a model's decode step on this CPU.

    Includes: every product with its weights, the mixing at each length, and what a step takes beside them.
    Excludes: what elementwise operations take longer on wide vectors than on narrow ones.

    Args:
        config: The model.
        dtype: Of its weights.
        batch_size: Sequences.
        lengths: Context lengths that the mixing is timed at.
        backend: Of attention; retention has one way to decode.
    """
    narrow = _narrowed(config)
    at_first = costs.decode_bytes(config, dtype, batch_size, min(lengths))
    narrow_mixing_s = _mixing_seconds(narrow, dtype, batch_size, NARROW_DEPTH, backend)
    return StepParts(
        fixed_s=_narrow_step_seconds(narrow, dtype, batch_size, backend),
        products_s=_products_seconds(config, dtype, batch_size, at_first)
        - _products_seconds(narrow, dtype, batch_size, 0),
        mixing_s={
            length: _mixing_seconds(config, dtype, batch_size, length, backend) - narrow_mixing_s
            for length in lengths
        },
    )


def _narrowed(config: ModelConfig) -> ModelConfig:
    """The model with hardly any width: as many blocks and heads, of the same kind."""
    width = NARROW_HEAD_DIM * config.num_heads
    changes: dict[str, object] = {"d_model": width, "ffn_dim": width, "vocab_size": NARROW_HEAD_DIM}
    if isinstance(config, RetNetConfig):
        changes["value_dim"] = width
    return parse_model_config({**config.model_dump(), **changes})


def _narrow_step_seconds(narrow: ModelConfig, dtype: str, batch_size: int, backend: str) -> float:
    """Seconds of a step of the narrow model."""
    form = backend if isinstance(narrow, TransformerConfig) else "recurrent"
    model = build_model(narrow, dtype=getattr(torch, dtype), device=CPU, seed=0, backend=form)
    state = model.init_state(batch_size, NARROW_DEPTH + 1)
    token = torch.zeros(batch_size, 1, dtype=torch.int64)
    model(token, state)
    mark = state.mark()
    return _median_seconds(lambda: model(token, state), lambda: state.rewind(mark))


def _products_seconds(config: ModelConfig, dtype: str, batch_size: int, step_bytes: int) -> float:
    """Seconds of all products of a step, each at its own shape."""
    return sum(
        count * _product_seconds(shape, dtype, batch_size, step_bytes)
        for shape, count in product_shapes(config).items()
    )


def product_shapes(config: ModelConfig) -> Counter[tuple[int, int]]:
    """Widths (in, out) of every product with weights in a decode step, and how often a step has it."""
    one_layer = config.model_copy(update={"num_layers": 1, "vocab_size": 1})
    form = "sdpa" if isinstance(config, TransformerConfig) else "recurrent"
    model = allocate_model(one_layer, dtype=torch.float32, device=CPU, backend=form)
    shapes: Counter[tuple[int, int]] = Counter()
    for part in model.blocks.modules():
        if isinstance(part, Linear):
            shapes[part.in_features, part.out_features] += config.num_layers
    shapes[config.d_model, config.vocab_size] += 1
    return shapes


def _product_seconds(shape: tuple[int, int], dtype: str, batch_size: int, step_bytes: int) -> float:
    """Seconds of one product of a single token of each sequence."""
    kind = getattr(torch, dtype)
    layers = [
        _random_linear(shape, kind)
        for _ in range(_num_copies(step_bytes, shape[0] * shape[1] * kind.itemsize))
    ]
    x = torch.randn(batch_size, 1, shape[0], dtype=kind)
    return _sweep_seconds([partial(layer, x) for layer in layers])


def _random_linear(shape: tuple[int, int], dtype: torch.dtype) -> Linear:
    """A product with weights of its own: what lies in new memory may be denormal."""
    layer = Linear(*shape).to(dtype).requires_grad_(False)
    layer.weight.t().normal_(0.0, INIT_STD)
    return layer


def _mixing_seconds(
    config: ModelConfig, dtype: str, batch_size: int, context_len: int, backend: str
) -> float:
    """Seconds of all layers' attention or retention in a step at a depth."""
    layer_bytes = costs.state_bytes(config, dtype, batch_size, context_len + 1) // config.num_layers
    step_bytes = costs.decode_bytes(config, dtype, batch_size, context_len)
    kind = getattr(torch, dtype)
    calls = [
        _retention_call(config, kind, batch_size)
        if isinstance(config, RetNetConfig)
        else _attention_call(config, kind, batch_size, context_len, backend)
        for _ in range(_num_copies(step_bytes, layer_bytes))
    ]
    return config.num_layers * _sweep_seconds(calls)


def _retention_call(config: RetNetConfig, dtype: torch.dtype, batch_size: int) -> Callable[[], object]:
    """One layer's step of retention on a state of its own."""
    heads, keys, values = config.num_heads, config.head_dim, config.value_head_dim
    q, k = torch.randn(2, batch_size, 1, heads, keys, dtype=dtype)
    v = torch.randn(batch_size, 1, heads, values, dtype=dtype)
    state = torch.randn(batch_size, heads, keys, values, dtype=wide_dtype(dtype))
    return partial(retention_step_, q, k, v, torch.full((heads,), -0.01, dtype=torch.float64), state)


def _attention_call(
    config: TransformerConfig, dtype: torch.dtype, batch_size: int, context_len: int, backend: str
) -> Callable[[], object]:
    """One layer's attention of one token to itself and the context, in a cache of its own."""
    shape = (batch_size, config.num_kv_heads, context_len + 1, config.head_dim)
    keys, values = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    q = torch.randn(batch_size, config.num_heads, 1, config.head_dim, dtype=dtype)
    return partial(BACKENDS[backend], q, keys, values)


def _num_copies(step_bytes: int, part_bytes: int) -> int:
    """Copies of a part that together have the bytes of the whole step."""
    return min(max(-(-step_bytes // part_bytes), MIN_COPIES), MAX_COPIES)


def _sweep_seconds(calls: Sequence[Callable[[], object]]) -> float:
    """Seconds of one of several calls that are made in turn."""

    def sweep() -> None:
        for call in calls:
            call()

    return _median_seconds(sweep, lambda: None) / len(calls)


def _median_seconds(call: Callable[[], object], before: Callable[[], object]) -> float:
    """Seconds of the median of several calls."""
    return median(time_steps(call, before, device=CPU, warmup_s=WARMUP_S, min_steps=NUM_SAMPLES))
