"""States of inference: sizes, capacity, and the return to an earlier position."""

import pytest
import torch

from retbench.architectures import costs
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.config.experiment_files import load_experiment
from retbench.errors import CapacityError
from retbench.models.build import build_model
from retbench.ops.linear import FewestKeys, RowProducts
from retbench.planning.cells import resolve_models
from tests.models.cases import config_of

CONFIGS = {
    **resolve_models(load_experiment("latency", ["size=1m"]), "cpu"),
    "yoco": config_of("yoco-gated"),
    "yoco-sw": config_of("yoco-sw"),
}
BACKENDS = {
    "retnet": "chunkwise",
    "transformer": "sdpa",
    "yoco": "chunkwise+sdpa",
    "yoco-sw": "blocks+sdpa",
}


@pytest.fixture(params=sorted(CONFIGS))
def model(request):
    return build_model(
        CONFIGS[request.param], dtype=torch.float32, device="cpu", seed=0, backend=BACKENDS[request.param]
    )


def tokens(batch, length, seed=0):
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def decode(model, state, steps, seed=1):
    text = tokens(next(iter(state.layers[0].tensors.values())).shape[0], steps, seed)
    return torch.cat([model(text[:, t : t + 1], state) for t in range(steps)], dim=1)


@pytest.mark.parametrize("batch", [1, 3])
def test_bytes_equal_the_closed_form(model, batch):
    state = model.init_state(batch, 77)
    assert state.num_bytes == costs.state_bytes(model.config, "float32", batch, 77)


def test_bytes_do_not_change_while_decoding(model):
    state = model.init_state(1, 40)
    before = state.num_bytes
    decode(model, state, 40)
    assert state.num_bytes == before
    assert state.position == 40


def test_past_capacity_is_an_error_that_changes_nothing():
    model = build_model(CONFIGS["transformer"], dtype=torch.float32, device="cpu", seed=0, backend="sdpa")
    state = model.init_state(1, 8)
    with torch.no_grad():
        model(tokens(1, 6), state)
        with pytest.raises(CapacityError, match="3 tokens at position 6 do not fit its capacity of 8"):
            model(tokens(1, 3), state)
        assert state.position == 6
        model(tokens(1, 2), state)
    assert state.position == 8


def test_a_retention_state_has_no_capacity():
    model = build_model(CONFIGS["retnet"], dtype=torch.float32, device="cpu", seed=0, backend="chunkwise")
    state = model.init_state(1, 4)
    assert state.capacity is None
    decode(model, state, 9)
    assert state.position == 9


def test_restore_returns_exactly_even_after_the_past_was_overwritten(model):
    state = model.init_state(2, 64)
    with torch.no_grad():
        model(tokens(2, 20), state)
        early = state.snapshot()
        decode(model, state, 10)
        late = state.snapshot()
        expected = decode(model, state, 5)
        state.restore(early)
        decode(model, state, 30, seed=9)  # writes over positions 20 .. 49
        state.restore(late)
        assert state.position == 30
        assert torch.equal(decode(model, state, 5), expected)


def test_rewind_repeats_the_same_step(model):
    state = model.init_state(1, 64)
    with torch.no_grad():
        model(tokens(1, 20), state)
        mark = state.mark()
        first = decode(model, state, 4)
        for _ in range(3):
            state.rewind(mark)
            assert state.position == 20
            assert torch.equal(decode(model, state, 4), first)


def test_all_sequences_return_to_the_mark_of_one(model):
    single, state = model.init_state(1, 64), model.init_state(3, 64)
    with torch.no_grad():
        model(tokens(1, 20), single)
        mark = single.mark()
        state.rewind(mark)
    assert state.position == 20
    for layer, copies in zip(state.layers, mark.overwritten, strict=True):
        for name, copied in copies.items():
            assert torch.equal(layer[name], copied.expand(3, -1, -1, -1))


def test_reorder_moves_whole_sequences(model):
    state = model.init_state(3, 32)
    with torch.no_grad():
        model(tokens(3, 10), state)
        alone = state.snapshot()
        state.reorder(torch.tensor([2, 0, 0]))
    for moved, original in zip(state.tensors().values(), alone.tensors().values(), strict=True):
        if moved.dim():
            assert torch.equal(moved, original[[2, 0, 0]])


def test_tensors_round_trip_into_another_state(model):
    state = model.init_state(1, 32)
    with torch.no_grad():
        model(tokens(1, 11), state)
    stored = {name: tensor.clone() for name, tensor in state.tensors().items()}
    other = model.init_state(1, 16)
    other.load_tensors(stored)
    assert torch.equal(decode(model, state, 3), decode(model, other, 3))


def test_a_window_holds_no_more_than_the_context_and_moves_to_another_capacity():
    """kin.md: 2 H K min(T, W) bytes; states of 512 tokens are as large as those of full attention."""
    models = [resolve_model(named_specs()[name], "6m") for name in ("sliding_window", "transformer")]
    assert len({costs.state_bytes(config, "float32", 1, 512) for config in models}) == 1
    model = build_model(models[0], dtype=torch.float32, device="cpu", seed=0, backend="blocks")
    short, whole = model.init_state(1, 20), model.init_state(1, 0)
    assert (short.capacity, whole.capacity) == (20, None)
    assert short.num_bytes == costs.state_bytes(models[0], "float32", 1, 20)
    with torch.no_grad():
        model(tokens(1, 12), short)
        whole.restore(short)
        branch = short.gather(torch.tensor([0]), 30)
        expected = decode(model, whole, 8)
        assert torch.equal(decode(model, branch, 8), expected)
        assert torch.equal(decode(model, short, 8), expected)
        with pytest.raises(CapacityError, match="do not fit its capacity of 20"):
            decode(model, short, 1)
        with pytest.raises(CapacityError, match="position 20 does not fit a capacity of 19"):
            whole.gather(torch.tensor([0]), 19)


def test_restoring_what_does_not_fit_is_an_error():
    model = build_model(CONFIGS["transformer"], dtype=torch.float32, device="cpu", seed=0, backend="sdpa")
    state = model.init_state(1, 32)
    with torch.no_grad():
        model(tokens(1, 20), state)
    with pytest.raises(CapacityError, match="position 20 does not fit a capacity of 10"):
        model.init_state(1, 10).restore(state)


@pytest.mark.parametrize(("name", "by_value"), [("retnet", True), ("rwkv6", True), ("mamba2", False)])
def test_a_state_lies_by_value_where_compiled_steps_gain_and_by_key_for_fused_ones(name, by_value):
    spec = named_specs()[name]
    config = resolve_model(spec, "300k")
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=spec.backend)
    with torch.no_grad():
        states = [model.init_state(2, 32)]
        for block in model.blocks:
            block.mixer.fused = True
        states.append(model.init_state(2, 32))
        assert [one.layers[0]["values"].mT.is_contiguous() for one in states] == [by_value, False]
        assert states[1].layers[0]["values"].is_contiguous()
        for block in model.blocks:
            block.mixer.fused = False
        model(tokens(2, 12), states[0])
        states[1].restore(states[0])
        first, second = (decode(model, one, 8) for one in states)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "backend", "fewest", "by_value"),
    [
        ("transformer", "auto", 0, True),
        ("transformer", "products", 0, True),
        ("transformer", "sdpa", 0, False),
        ("transformer", "auto", 4096, False),
        ("transformer", "auto", None, False),
        ("gqa", "auto", 0, False),
        ("concat", "auto", 0, False),
        ("sliding_window", "auto", 0, True),
        ("sliding_window", "blocks", 0, False),
    ],
)
def test_cached_values_lie_by_value_where_all_single_queries_attend_by_products(
    name, backend, fewest, by_value
):
    changes = {
        "gqa": {"num_kv_heads": 1},
        "concat": {"cache": "concat"},
        "sliding_window": {"window": 11, "sinks": 2},
    }
    spec = named_specs()[name if name in named_specs() else "transformer"]
    spec = spec.model_copy(update=changes.get(name, {}))
    config = resolve_model(spec, "1m")
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=backend)
    usual = model.init_state(2, 32)
    model.set_row_products(RowProducts(FewestKeys(fewest, fewest)))
    state = model.init_state(2, 32)
    assert state.num_bytes == usual.num_bytes
    with torch.no_grad():
        for part in tokens(2, 20).split([1, 12, 7], dim=1):  # of several tokens behind others, too
            found, expected = (model(part, one) for one in (state, usual))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    branch = state.gather(torch.tensor([1, 0, 1]), 40)
    for one in (state, branch):
        values = one.layers[0]["values"]
        assert (values.stride(2) == 1, values.stride(3) == 1) == (by_value, not by_value)
    usual.restore(state)  # into the other layout
    expected = decode(model, usual, 8)
    torch.testing.assert_close(decode(model, state, 8), expected, atol=1e-5, rtol=1e-4)
