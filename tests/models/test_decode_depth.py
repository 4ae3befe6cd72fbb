"""A decode step of a model whose state has a fixed size does the same work at every depth."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.models.build import build_model

SHALLOW, DEEP = 1024, 32_768
CONFIGS = {name: resolve_model(spec, "1m") for name, spec in named_specs().items()}
FIXED = [
    name
    for name, config in CONFIGS.items()
    if all(tensor.kind == "fixed" for block in config.blocks for tensor in block.state)
]


class Work(TorchDispatchMode):
    """Records every operator with the shapes, strides and dtypes of the tensors that it reads and writes."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        self.steps.append((str(func), [(tuple(x.shape), x.stride(), x.dtype) for x in tensors]))
        return out


def one_of_each_layer(name):
    """The named model with one layer of each kind."""
    config = CONFIGS[name]
    blocks = tuple(block.model_copy(update={"count": 1}) for block in dict.fromkeys(config.blocks))
    return build_model(
        config.model_copy(update={"blocks": blocks}),
        dtype=torch.float32,
        device="cpu",
        seed=0,
        backend=named_specs()[name].backend,
    )


def places_of(state):
    """Return where each tensor of each layer is in memory."""
    return [{name: x.data_ptr() for name, x in layer.tensors.items()} for layer in state.layers]


@torch.inference_mode()
def work_at(model, state, depth):
    """Record a step of one token at a depth, after another step: the first records what it executes."""
    token = torch.zeros(1, 1, dtype=torch.int64)
    state.position = depth - 1
    model(token, state)
    with Work() as work:
        model(token, state)
    assert state.position == depth + 1
    return work.steps


@pytest.mark.parametrize("name", FIXED)
def test_a_step_with_a_fixed_state_is_the_same_operators_on_the_same_shapes_at_any_depth(name):
    model = one_of_each_layer(name)
    state = model.init_state(1, 0)
    places = places_of(state)
    num_bytes = state.num_bytes
    shallow, deep = (work_at(model, state, depth) for depth in (SHALLOW, DEEP))
    assert len(shallow) > 10
    assert deep == shallow
    assert places_of(state) == places
    assert state.num_bytes == num_bytes


def test_growing_work_would_be_seen():
    model = one_of_each_layer("transformer")
    state = model.init_state(1, DEEP + 1)
    assert work_at(model, state, DEEP) != work_at(model, state, SHALLOW)


def test_the_models_with_a_fixed_state_are_found_by_their_states():
    assert {"retnet", "retnet-yoco", "gla", "mamba2", "rwkv6", "linear"} <= set(FIXED)
    assert "transformer" not in FIXED
