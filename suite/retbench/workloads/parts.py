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
from math import lcm
from statistics import median

import torch
from torch import Tensor, nn

from retbench.architectures.configs import ModelConfig
from retbench.measure.clock import time_steps
from retbench.models.build import build_model
from retbench.models.decoder import Block, Decoder
from retbench.models.state import DecoderState
from retbench.ops.linear import Linear
from retbench.planning.prediction import StepCurve

WARMUP_S = 0.2
NUM_SAMPLES = 20
"""Steps of which the median counts."""

NARROW_HEAD_DIM = 16
NARROW_DEPTH = 1

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
        backend: The form to run with.
    """
    narrow, model = (_build(each, dtype, backend) for each in (_narrowed(config), config))
    state = model.init_state(batch_size, max(lengths) + 1)
    for layer in state.layers:
        for held in layer.tensors.values():
            held.normal_()  # pages that nothing was written to are all one in memory
    own_s = _own_mixing_seconds(narrow, batch_size)
    return StepCurve(
        {
            length: _carrying_seconds(narrow, parts_of(model, state, batch_size, length), batch_size) - own_s
            for length in lengths
        }
    )


def _build(config: ModelConfig, dtype: str, backend: str) -> Decoder:
    """Build the model with the forms that it decodes with."""
    return build_model(config, dtype=getattr(torch, dtype), device=CPU, seed=0, backend=backend)


def _narrowed(config: ModelConfig) -> ModelConfig:
    """Return the model with hardly any width: as many blocks and heads, of the same kinds."""
    blocks = []
    width = NARROW_HEAD_DIM * lcm(*(mixer.num_heads for mixer in config.mixers))
    for block in config.blocks:
        mixer = block.mixer.narrowed(width // block.mixer.num_heads)
        ffn = block.ffn and block.ffn.model_copy(update={"d_model": width, "ffn_dim": width})
        blocks.append(block.model_copy(update={"mixer": mixer, "ffn": ffn}))
    changes = {"d_model": width, "vocab_size": NARROW_HEAD_DIM, "blocks": tuple(blocks)}
    return config.model_copy(update=changes)


def parts_of(model: Decoder, state: DecoderState, batch_size: int, context_len: int) -> list[list[Call]]:
    """Every product of a step of one token a sequence, in the order of a step, each with what mixes behind it."""
    found: list[list[Call]] = []
    for block, held in zip(model.blocks, state.layers, strict=True):
        first, *rest = _products(block)
        assert isinstance(block, Block)
        mixing = block.mixer.mixing(held, batch_size, context_len)
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


def _median_seconds(call: Call, before: Callable[[], object]) -> float:
    """Seconds of the median of several calls."""
    return median(time_steps(call, before, device=CPU, warmup_s=WARMUP_S, min_steps=NUM_SAMPLES))
