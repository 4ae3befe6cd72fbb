"""The parts of a decode step on a CPU, each timed apart from the others: what a prediction there is made of.

A rehearsal makes every product and every mixing of a step once, each with its own weights or state, in the order of a
step: so they find in the caches what they would find in one, code as well as data, and threads meet as often. Each is
timed by itself. What does not depend on sizes (launching operations, norms, rotations) is the step of a model with as
many blocks of hardly any width. No step of the model itself is timed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor

from retbench.architectures import ModelConfig, RetNetConfig, TransformerConfig, parse_model_config
from retbench.measure.clock import time_steps
from retbench.models.attention import BACKENDS
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.models.linear import Linear
from retbench.models.retention import retention_step_
from retbench.models.state import DecoderState, KVCache
from retbench.prediction import StepParts

WARMUP_S = 0.2
NUM_SAMPLES = 20
"""Steps of the narrow model, and rehearsals, of which the median counts."""

NARROW_HEAD_DIM = 16
NARROW_DEPTH = 1
LOG_DECAY = -0.01
"""Of every head: what a step takes does not depend on it."""

CPU = torch.device("cpu")
Call = Callable[[], object]


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
        lengths: Context lengths.
        backend: Of attention; retention has one way to decode.
    """
    narrow = _build(_narrowed(config), dtype, backend)
    fixed_s = _step_seconds(narrow, batch_size)
    narrow_parts_s = _parts_seconds(narrow, batch_size, [NARROW_DEPTH])[NARROW_DEPTH]
    found = _parts_seconds(_build(config, dtype, backend), batch_size, lengths)
    return StepParts(
        fixed_s=fixed_s, parts_s={length: seconds - narrow_parts_s for length, seconds in found.items()}
    )


def _build(config: ModelConfig, dtype: str, backend: str) -> Decoder:
    """The model; what is not of attention decodes in its one way."""
    form = backend if isinstance(config, TransformerConfig) else "recurrent"
    return build_model(config, dtype=getattr(torch, dtype), device=CPU, seed=0, backend=form)


def _narrowed(config: ModelConfig) -> ModelConfig:
    """The model with hardly any width: as many blocks and heads, of the same kind."""
    width = NARROW_HEAD_DIM * config.num_heads
    changes: dict[str, object] = {"d_model": width, "ffn_dim": width, "vocab_size": NARROW_HEAD_DIM}
    if isinstance(config, RetNetConfig):
        changes["value_dim"] = width
    return parse_model_config({**config.model_dump(), **changes})


def _step_seconds(narrow: Decoder, batch_size: int) -> float:
    """Seconds of a step of the narrow model."""
    state = narrow.init_state(batch_size, NARROW_DEPTH + 1)
    token = torch.zeros(batch_size, 1, dtype=torch.int64)
    narrow(token, state)
    mark = state.mark()
    return _median_seconds(lambda: narrow(token, state), lambda: state.rewind(mark))


def _parts_seconds(model: Decoder, batch_size: int, lengths: Sequence[int]) -> dict[int, float]:
    """Seconds of all products and mixing of a step of a model, each timed by itself, by context length."""
    state = model.init_state(batch_size, max(lengths) + 1)
    for layer in state.layers:
        for held in layer.tensors(max(lengths) + 1).values():
            held.normal_()  # pages that nothing was written to are all one in memory
    return {
        length: _rehearsal_seconds(list(rehearsal(model, state, batch_size, length))) for length in lengths
    }


def rehearsal(model: Decoder, state: DecoderState, batch_size: int, context_len: int) -> Iterator[Call]:
    """Every product and every mixing of a step of one token a sequence, in the order of a step."""
    for block, held in zip(model.blocks, state.layers, strict=True):
        first, *rest = (part for part in block.modules() if isinstance(part, Linear))
        yield _product(first, batch_size)
        if isinstance(held, KVCache):
            yield _attention(model.backend, model.config.num_heads, held, context_len)
        else:
            yield _retention(model.dtype, held.values)
        yield from (_product(part, batch_size) for part in rest)
    yield _product(model.head, batch_size)


def _product(layer: Linear, batch_size: int) -> Call:
    """A product of one token of each sequence."""
    return partial(layer, torch.randn(batch_size, 1, layer.in_features).to(layer.weight.dtype))


def _retention(dtype: torch.dtype, values: Tensor) -> Call:
    """A layer's step of retention on its state (B, H, K, V)."""
    batch_size, num_heads, head_dim, value_head_dim = values.shape
    q, k = torch.randn(2, batch_size, 1, num_heads, head_dim).to(dtype)
    v = torch.randn(batch_size, 1, num_heads, value_head_dim).to(dtype)
    log_decay = torch.full((num_heads,), LOG_DECAY, dtype=torch.float64)
    return partial(retention_step_, q, k, v, log_decay, values)


def _attention(backend: str, num_heads: int, cache: KVCache, context_len: int) -> Call:
    """A layer's attention of one token to itself and the context."""
    keys, values = cache.tensors(context_len + 1).values()  # (B, Hkv, context + 1, K)
    batch_size, _, _, head_dim = keys.shape
    q = torch.randn(batch_size, num_heads, 1, head_dim).to(keys.dtype)
    return partial(BACKENDS[backend], q, keys, values)


def _rehearsal_seconds(calls: Sequence[Call]) -> float:
    """Seconds of several calls that are made in turn and timed one by one: the median of the sums."""
    sums: list[float] = []

    def rehearse() -> None:
        spent = 0.0
        for call in calls:
            since = time.perf_counter()
            call()
            spent += time.perf_counter() - since
        sums.append(spent)

    time_steps(rehearse, lambda: None, device=CPU, warmup_s=WARMUP_S, min_steps=NUM_SAMPLES)
    return median(sums[-NUM_SAMPLES:])


def _median_seconds(call: Call, before: Callable[[], object]) -> float:
    """Seconds of the median of several calls."""
    return median(time_steps(call, before, device=CPU, warmup_s=WARMUP_S, min_steps=NUM_SAMPLES))
