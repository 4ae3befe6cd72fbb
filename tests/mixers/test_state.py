"""The state of a layer: each kind of tensor is sized, copied, restored, branched and stored as its kind says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retbench.mixers.mixer import StateTensor
from retbench.mixers.state import LayerState, allocate_state

LAYOUT = (
    StateTensor("sum", (2, 3, 4), wide=True),
    StateTensor("conv", (5,)),  # a second tensor of a fixed size, as Mamba-2 has
    StateTensor("keys", (2, 4), "per_token"),
    StateTensor("ring", (2, 4), "per_token", window=6),
)


def filled(batch: int = 3, capacity: int = 8, dtype: torch.dtype = torch.bfloat16) -> LayerState:
    state = allocate_state(LAYOUT, batch, capacity, torch.zeros(1, dtype=dtype), torch.float32)
    for tensor in state.tensors.values():
        tensor.normal_()
    return state


def test_tensors_have_the_shapes_and_dtypes_of_their_kinds() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in filled().tensors.items()}
    assert shapes == {"sum": (3, 2, 3, 4), "conv": (3, 5), "keys": (3, 2, 8, 4), "ring": (3, 2, 6, 4)}
    assert filled()["sum"].dtype == torch.float32
    assert filled()["keys"].dtype == torch.bfloat16


@given(batch=st.integers(1, 4), capacity=st.integers(1, 20), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_bytes_held_are_the_analytical_ones(batch: int, capacity: int, dtype: str) -> None:
    state = filled(batch, capacity, getattr(torch, dtype))
    expected = sum(one.num_bytes(dtype, one.num_tokens(capacity)) for one in LAYOUT)
    assert state.num_bytes == batch * expected


def test_only_what_grows_limits_the_capacity() -> None:
    assert filled(capacity=8).capacity == 8
    fixed = allocate_state(LAYOUT[:2], 1, 8, torch.zeros(1), torch.float32)
    assert fixed.capacity is None


@pytest.mark.parametrize(
    ("capacity", "slots", "room"), [(0, 6, None), (1, 1, 1), (5, 5, 5), (6, 6, None), (9, 6, None)]
)
def test_a_window_is_no_longer_than_the_capacity(capacity: int, slots: int, room: int | None) -> None:
    """A whole window holds any number of tokens, and so has a state that is made without a limit."""
    state = allocate_state(LAYOUT[3:], 1, capacity, torch.zeros(1), torch.float32)
    assert (state["ring"].shape[2], state.capacity) == (slots, room)


def test_a_shorter_window_is_not_overwritten_and_moves_into_a_longer_one() -> None:
    short, long = (allocate_state(LAYOUT[3:], 1, room, torch.zeros(1), torch.float32) for room in (4, 9))
    short["ring"].normal_()
    assert (short.overwritten(), set(long.overwritten())) == ({}, {"ring"})
    long.restore(short, 3)
    assert torch.equal(long["ring"][:, :, :3], short["ring"][:, :, :3])
    assert not long["ring"][:, :, 3:].any()
    branch = long.gather(torch.tensor([0, 0]), 3, 5)
    assert branch["ring"].shape[2] == 5
    assert torch.equal(branch["ring"][0, :, :3], short["ring"][0, :, :3])


def test_a_point_to_return_to_holds_every_tensor_that_is_overwritten() -> None:
    state = filled()
    copies = state.overwritten()
    assert set(copies) == {"sum", "conv", "ring"}


def test_a_snapshot_holds_the_tokens_seen_and_restores_them() -> None:
    state = filled()
    saved, before = state.snapshot(5), {name: tensor.clone() for name, tensor in state.tensors.items()}
    for tensor in state.tensors.values():
        tensor.zero_()
    state.restore(saved, 5)
    for name, tensor in state.used(5).items():
        expected = before[name][:, :, :5] if name in ("keys", "ring") else before[name]
        assert torch.equal(tensor, expected)
    assert not state["keys"][:, :, 5:].any()


def test_branches_are_copies_with_room_for_more() -> None:
    state = filled()
    branch = state.gather(torch.tensor([2, 0]), 5, 20)
    assert branch.capacity == 20
    assert torch.equal(branch["keys"][:, :, :5], state["keys"][[2, 0], :, :5])
    assert torch.equal(branch["ring"][:, :, :5], state["ring"][[2, 0], :, :5])
    branch["sum"].zero_()
    assert state["sum"].any()


def test_reordered_sequences_move_whole() -> None:
    state = filled()
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    state.reorder(torch.tensor([1, 1, 0]), 8)
    for name, tensor in state.tensors.items():
        assert torch.equal(tensor, before[name][[1, 1, 0]])


@pytest.mark.parametrize(
    ("kind", "window", "context_len", "tokens"),
    [("per_token", 0, 100, 102), ("per_token", 6, 3, 5), ("per_token", 6, 100, 7)],
)
def test_a_decode_step_reads_what_is_there_and_writes_one_token(
    kind: str, window: int, context_len: int, tokens: int
) -> None:
    one = StateTensor("keys", (2, 4), kind, window=window)  # type: ignore[arg-type]
    assert one.bytes_moved("float32", context_len) == 4 * 2 * 4 * tokens


def test_a_fixed_tensor_is_read_and_written_whole() -> None:
    assert LAYOUT[0].bytes_moved("bfloat16", 1000) == 2 * 4 * 2 * 3 * 4
