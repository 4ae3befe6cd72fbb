"""A decode step put together from its parts on a CPU: what a prediction there is made of.

A model of hardly any width, with as many blocks and heads of the same kind, makes its step; in place of each of its
products it makes the product of the wanted model, with its own weights, and behind the first of a block that one's
mixing, on its own state. So the products and the mixing find in the caches what they would find in a step, and what
does not depend on sizes (launching operations, norms, rotations) finds there what they leave of it. The mixing of the
narrow model is timed by itself and taken off. No step of the model itself is made.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from retbench.architectures.configs import ModelConfig, RetNetConfig, TransformerConfig, parse_model_config
from retbench.measure.clock import time_steps
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.models.linear import Linear
from retbench.models.state import DecoderState, KVCache
from retbench.ops.attention import BACKENDS
from retbench.ops.retention import retention_decayed_step_
from retbench.planning.prediction import StepCurve

WARMUP_S = 0.2
NUM_SAMPLES = 20
"""Steps of which the median counts."""

NARROW_HEAD_DIM = 16
NARROW_DEPTH = 1
DECAY = 0.99
"""Of every head: what a step takes does not depend on it."""

CPU = torch.device("cpu")
Call = Callable[[], object]


@torch.inference_mode()
def measure_parts(
    config: ModelConfig, dtype: str, batch_size: int, lengths: Sequence[int], *, backend: str
) -> StepCurve:
    """Times of a model's decode step on this CPU, put together from its parts.

    Includes: every product with its weights, the mixing at each length, and what a step takes beside them.
    Excludes: what elementwise operations take longer on wide vectors than on narrow ones.

    Args:
        config: The model.
        dtype: Of its weights.
        batch_size: Sequences.
        lengths: Context lengths.
        backend: Of attention; retention has one way to decode.
    """
    narrow, model = (_build(each, dtype, backend) for each in (_narrowed(config), config))
    state = model.init_state(batch_size, max(lengths) + 1)
    for layer in state.layers:
        for held in layer.tensors(max(lengths) + 1).values():
            held.normal_()  # pages that nothing was written to are all one in memory
    own_s = _own_mixing_seconds(narrow, batch_size)
    return StepCurve(
        {
            length: _carrying_seconds(narrow, parts_of(model, state, batch_size, length), batch_size) - own_s
            for length in lengths
        }
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


def parts_of(model: Decoder, state: DecoderState, batch_size: int, context_len: int) -> list[list[Call]]:
    """Every product of a step of one token a sequence, in the order of a step, each with what mixes behind it."""
    found: list[list[Call]] = []
    for block, held in zip(model.blocks, state.layers, strict=True):
        first, *rest = _products(block)
        mixing = (
            _attention(model.backend, model.config.num_heads, held, context_len)
            if isinstance(held, KVCache)
            else _retention(model.dtype, held.values)
        )
        found += [[_product(first, batch_size), mixing], *([_product(part, batch_size)] for part in rest)]
    return [*found, [_product(model.head, batch_size)]]


def _products(module: nn.Module) -> list[Linear]:
    return [part for part in module.modules() if isinstance(part, Linear)]


def _carrying_seconds(narrow: Decoder, parts: Sequence[Sequence[Call]], batch_size: int) -> float:
    """Seconds of a step of the narrow model that makes the parts of a wide one in place of its products."""
    state = narrow.init_state(batch_size, NARROW_DEPTH + 1)
    token = torch.zeros(batch_size, 1, dtype=torch.int64)
    narrow(token, state)
    mark = state.mark()
    with _replaced_products(narrow, parts, batch_size):
        return _median_seconds(lambda: narrow(token, state), lambda: state.rewind(mark))


@contextmanager
def _replaced_products(narrow: Decoder, parts: Sequence[Sequence[Call]], batch_size: int) -> Iterator[None]:
    """Each product of the narrow model makes these calls instead and gives zeros, until the block ends."""
    products = _products(narrow)
    for own, calls in zip(products, parts, strict=True):
        nothing = torch.zeros(batch_size, 1, own.out_features, dtype=own.weight.dtype)
        own.forward = partial(_make, calls, nothing)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for own in products:
            del own.forward


def _make(calls: Sequence[Call], given: Tensor, _: Tensor) -> Tensor:
    """Make the calls, and give what is given."""
    for call in calls:
        call()
    return given


def _own_mixing_seconds(narrow: Decoder, batch_size: int) -> float:
    """Seconds of the mixing of the narrow model."""
    state = narrow.init_state(batch_size, NARROW_DEPTH + 1)
    calls = [call for _, *mixing in parts_of(narrow, state, batch_size, NARROW_DEPTH) for call in mixing]

    def mix() -> None:
        for call in calls:
            call()

    return _median_seconds(mix, lambda: None)


def _product(layer: Linear, batch_size: int) -> Call:
    """A product of one token of each sequence."""
    return partial(layer, torch.randn(batch_size, 1, layer.in_features).to(layer.weight.dtype))


def _retention(dtype: torch.dtype, values: Tensor) -> Call:
    """A layer's step of retention on its state (B, H, K, V)."""
    batch_size, num_heads, head_dim, value_head_dim = values.shape
    q, k = torch.randn(2, batch_size, 1, num_heads, head_dim).to(dtype)
    v = torch.randn(batch_size, 1, num_heads, value_head_dim).to(dtype)
    decay = torch.full((num_heads,), DECAY, dtype=values.dtype)
    return partial(retention_decayed_step_, q, k, v, decay, values)


def _attention(backend: str, num_heads: int, cache: KVCache, context_len: int) -> Call:
    """A layer's attention of one token to itself and the context."""
    keys, values = cache.tensors(context_len + 1).values()  # (B, Hkv, context + 1, K)
    batch_size, _, _, head_dim = keys.shape
    q = torch.randn(batch_size, num_heads, 1, head_dim).to(keys.dtype)
    return partial(BACKENDS[backend], q, keys, values)


def _median_seconds(call: Call, before: Callable[[], object]) -> float:
    """Seconds of the median of several calls."""
    return median(time_steps(call, before, device=CPU, warmup_s=WARMUP_S, min_steps=NUM_SAMPLES))
