"""Closed forms against numbers that torch counts and numbers that the papers print."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retbench import costs
from retbench.cells import resolve_models
from retbench.config import load_experiment
from retbench.models.build import build_model

SMALL = resolve_models(load_experiment("latency", ["size=1m"]), "cpu")
LARGE = resolve_models(load_experiment("latency", ["size=6.7b"]), "paper")


def count_flops(call):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "batch", [2, 3]
)  # torch does not count the weighted sum of rows that one sequence takes
def test_decode_flops_of_attention_equal_what_torch_counts(batch):
    model = build_model(SMALL["transformer"], dtype=torch.float32, device="cpu", seed=0, backend="reference")
    state = model.init_state(batch, 65)
    text = torch.zeros(batch, 65, dtype=torch.int64)
    with torch.no_grad():
        model(text[:, :64], state)
    counted = count_flops(lambda: model(text[:, 64:], state))
    assert costs.decode_flops(SMALL["transformer"], batch, 64) == counted


def test_decode_flops_of_retention_exceed_the_products_by_the_state_update():
    """Torch counts products only; decay and rank-one update are 3 operations a state value."""
    config = SMALL["retnet"]
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise")
    state = model.init_state(2, 0)
    counted = count_flops(lambda: model(torch.zeros(2, 1, dtype=torch.int64), state))
    update = 2 * 3 * config.num_layers * config.num_heads * config.head_dim * config.value_head_dim
    assert costs.decode_flops(config, 2, 0) == counted + update


@pytest.mark.parametrize("length", [128, 512])
def test_prefill_flops_of_retention_equal_what_torch_counts(length):
    """Less one read of a zero state in all blocks but the last: the first chunk has none."""
    config = SMALL["retnet"]
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="chunkwise", chunk_size=64)
    text = torch.zeros(2, length, dtype=torch.int64)
    counted = count_flops(lambda: model(text, last_only=True))
    unread = 2 * 2 * (config.num_layers - 1) * config.num_heads * 64 * config.head_dim * config.value_head_dim
    assert costs.prefill_flops(config, 2, length, 64) == counted + unread


def test_prefill_flops_of_attention_count_the_causal_half():
    config = SMALL["transformer"]
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="reference")
    text = torch.zeros(2, 256, dtype=torch.int64)
    counted = count_flops(lambda: model(text, last_only=True))
    upper_half = 2 * (config.num_layers - 1) * 2 * config.d_model * 256 * 255
    assert costs.prefill_flops(config, 2, 256, 1) == counted - upper_half


TRAINED = [("retnet", "chunkwise"), ("retnet", "parallel"), ("transformer", "reference")]


def count_training(config, backend, length, *, checkpointing):
    """Operations of a step's products, as torch counts them, for two sequences and chunks of 64."""
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=backend, chunk_size=64)
    model.activation_checkpointing = checkpointing
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, length, dtype=torch.int64)).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("length", [40, 128, 150])
@pytest.mark.parametrize(("name", "backend"), TRAINED)
def test_training_flops_equal_what_torch_counts(name, backend, length, checkpointing):
    """Less the half of the square above the diagonal, and the update of a state that nothing reads."""
    config = SMALL[name]
    chunk_size = 64 if backend == "chunkwise" else None
    counted = count_training(config, backend, length, checkpointing=checkpointing)
    runs = 2 if checkpointing else 1  # forward runs: where the update runs without need
    heads = 2 * config.num_layers * config.num_heads
    if name == "retnet":
        last = length if chunk_size is None else length % chunk_size or chunk_size
        counted -= runs * heads * 2 * last * config.head_dim * config.value_head_dim
    if backend != "chunkwise":
        widths = config.head_dim + (config.value_head_dim if name == "retnet" else config.head_dim)
        counted -= (runs + 2) * heads * widths * length * (length - 1)
    assert costs.training_flops(config, 2, length, chunk_size, recomputed=checkpointing) == counted


def test_what_the_paper_lets_one_derive():
    """RetNet Figure 6(a): 13.4 GB of weights, and 4.19 MB of cache a token at batch 8 for multi-head attention."""
    transformer = LARGE["transformer"]
    one_table = transformer.vocab_size * transformer.d_model * 2
    assert (costs.weight_bytes(transformer, "bfloat16") - one_table) / 1e9 == pytest.approx(13.4, abs=0.05)
    per_token = costs.state_bytes(transformer, "bfloat16", 8, 2) - costs.state_bytes(
        transformer, "bfloat16", 8, 1
    )
    assert per_token / 1e6 == pytest.approx(4.19, abs=0.01)


def test_a_retention_state_is_as_large_as_the_cache_of_a_fixed_number_of_tokens():
    """256 tokens if its values had 2 bytes, at any size (values 2d wide, key heads 256); ours have 4."""
    retnet, transformer = LARGE["retnet"], LARGE["transformer"]
    assert costs.state_bytes(retnet, "bfloat16", 1, 0) == costs.state_bytes(transformer, "bfloat16", 1, 512)


def test_decode_bytes_grow_with_depth_for_attention_only():
    retnet, transformer = SMALL["retnet"], SMALL["transformer"]
    assert costs.decode_bytes(retnet, "float32", 1, 1024) == costs.decode_bytes(retnet, "float32", 1, 32_768)
    grown = costs.decode_bytes(transformer, "float32", 1, 1025) - costs.decode_bytes(
        transformer, "float32", 1, 1024
    )
    assert grown == 2 * transformer.num_layers * transformer.d_model * 4
