"""Closed forms against numbers that torch counts and numbers that the papers print."""

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retbench.architectures import costs
from retbench.architectures.configs import reading_backend
from retbench.architectures.gla import GlaSpec
from retbench.architectures.hybrid import HybridSpec
from retbench.architectures.linear import LinearSpec
from retbench.architectures.mamba2 import Mamba2Spec
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.architectures.retnet import RetNetSpec
from retbench.architectures.rwkv6 import RwkvSpec
from retbench.architectures.transformer import TransformerSpec
from retbench.architectures.yoco import YocoSpec
from retbench.config.experiment_files import load_experiment
from retbench.measure.memory import measure_memory
from retbench.models.build import build_model
from retbench.ops.linear import RowProducts
from retbench.planning.cells import resolve_models
from tests.models.cases import CASES, config_of

SMALL = resolve_models(load_experiment("latency", ["size=1m"]), "cpu")
RETENTION = [case for case, (name, _) in CASES.items() if name == "retnet"]
LINEAR = ["linear", "linear-identity", "linear-performer", "linear-taylor"]
UNDECAYED = ["linear", "linear-identity", "linear-taylor"]
ATTENTION = [case for case, (name, _) in CASES.items() if name == "transformer"]
LARGE = resolve_models(load_experiment("latency", ["size=6.7b"]), "paper")


def count_flops(call):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def build(case, backend):
    config = config_of(case) if case in CASES else resolve(named_specs()[case])
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=backend, chunk_size=64)
    model.set_row_products(RowProducts())  # torch counts its own products only, and which is faster is chance
    return model


# Two sequences and more: torch does not count the weighted sum of rows that one sequence takes.
@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("case", ATTENTION)
def test_decode_flops_of_attention_equal_what_torch_counts(case, batch):
    model = build(case, "reference")
    state = model.init_state(batch, 65)
    text = torch.zeros(batch, 65, dtype=torch.int64)
    with torch.no_grad():
        model(text[:, :64], state)
    counted = count_flops(lambda: model(text[:, 64:], state))
    assert costs.decode_flops(model.config, batch, 64) == counted


@pytest.mark.parametrize("case", [*RETENTION, *LINEAR, "gla"])
def test_decode_flops_of_a_matrix_state_exceed_the_products_by_its_update(case):
    """Torch counts products only; a rank-one update is 2 operations a state value, and a decay one more."""
    per_value = 2 if case in UNDECAYED else 3
    model = build(case, "chunkwise")
    state = model.init_state(2, 0)
    counted = count_flops(lambda: model(torch.zeros(2, 1, dtype=torch.int64), state))
    config = model.config
    update = (
        2
        * per_value
        * config.num_layers
        * config.mixer.num_heads
        * config.mixer.head_dim
        * config.mixer.value_head_dim
    )
    assert costs.decode_flops(config, 2, 0) == counted + update


@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("case", [*RETENTION, *LINEAR])
def test_prefill_flops_of_a_matrix_state_equal_what_torch_counts(case, length):
    """Less one read of a zero state in all blocks but the last: the first chunk has none."""
    model = build(case, "chunkwise")
    text = torch.zeros(2, length, dtype=torch.int64)
    counted = count_flops(lambda: model(text, last_only=True))
    config = model.config
    unread = (
        2
        * 2
        * (config.num_layers - 1)
        * config.mixer.num_heads
        * 64
        * config.mixer.head_dim
        * config.mixer.value_head_dim
    )
    assert costs.prefill_flops(config, 2, length, "chunkwise", 64) == counted + unread


@pytest.mark.parametrize("case", ATTENTION)
def test_prefill_flops_of_attention_count_the_causal_half(case):
    model = build(case, "reference")
    text = torch.zeros(2, 256, dtype=torch.int64)
    counted = count_flops(lambda: model(text, last_only=True))
    upper_half = 2 * (model.config.num_layers - 1) * 2 * model.config.d_model * 256 * 255
    assert costs.prefill_flops(model.config, 2, 256, "reference", None) == counted - upper_half


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
    heads = 2 * config.num_layers * config.mixer.num_heads
    if name == "retnet":
        last = length if chunk_size is None else length % chunk_size or chunk_size
        counted -= runs * heads * 2 * last * config.mixer.head_dim * config.mixer.value_head_dim
    if backend != "chunkwise":
        widths = config.mixer.head_dim + (
            config.mixer.value_head_dim if name == "retnet" else config.mixer.head_dim
        )
        counted -= (runs + 2) * heads * widths * length * (length - 1)
    assert costs.training_flops(config, 2, length, backend, 64, recomputed=checkpointing) == counted


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


@pytest.mark.parametrize("name", sorted(SMALL))
def test_prefill_bytes_are_the_weights_and_the_state_that_is_left(name):
    config = SMALL[name]
    whole = costs.weight_bytes(config, "float32") + costs.state_bytes(config, "float32", 2, config.vocab_size)
    assert (
        costs.prefill_bytes(config, "float32", 2, config.vocab_size) == whole
    )  # every row of the table at most
    one = costs.prefill_bytes(config, "float32", 1, 1) - costs.state_bytes(config, "float32", 1, 1)
    assert one == costs.weight_bytes(config, "float32") - (config.vocab_size - 1) * config.d_model * 4


def test_decode_bytes_grow_with_depth_for_attention_only():
    retnet, transformer = SMALL["retnet"], SMALL["transformer"]
    assert costs.decode_bytes(retnet, "float32", 1, 1024) == costs.decode_bytes(retnet, "float32", 1, 32_768)
    grown = costs.decode_bytes(transformer, "float32", 1, 1025) - costs.decode_bytes(
        transformer, "float32", 1, 1024
    )
    assert grown == 2 * transformer.num_layers * transformer.d_model * 4


def test_a_large_batch_reads_no_more_rows_of_the_table_than_there_are():
    config = SMALL["retnet"]
    moved = [
        costs.decode_traffic(config, "float32", batch, 64)
        for batch in (config.vocab_size, 4 * config.vocab_size)
    ]
    assert moved[0].weights == moved[1].weights == costs.weight_bytes(config, "float32")


CACHES = ("preallocated", "concat")
DEPTH = 32
SPECS = [
    *(
        RetNetSpec(architecture="retnet", variant=variant)
        for variant in ("fla", "torchscale", "paper", "yoco")
    ),
    RetNetSpec(architecture="retnet", swish_gate=False, head_norm=False),
    *(TransformerSpec(architecture="transformer", variant=variant) for variant in ("llama", "gpt")),
    TransformerSpec(architecture="transformer", num_kv_heads=1),
    TransformerSpec(architecture="transformer", num_kv_heads=1, cache="concat"),
    TransformerSpec(architecture="transformer", cache="concat"),
    # A narrow feed-forward leaves the mixer as what takes most.
    *(
        LinearSpec(architecture="linear", variant=variant, ffn_dim=8)
        for variant in ("elu", "identity", "performer", "taylor")
    ),
    GlaSpec(architecture="gla", ffn_dim=8),
    HybridSpec(pattern=("gated_convolution",), ffn_dim=8),
    *(Mamba2Spec(architecture="mamba2", num_groups=groups) for groups in (1, 2)),
    *(RwkvSpec(architecture="rwkv6", variant=variant) for variant in ("v6", "v5")),
    YocoSpec(architecture="yoco"),
    YocoSpec(architecture="yoco", variant="sw", window=16),
]


@pytest.mark.parametrize(
    ("dtype", "vocab_size"),  # a mixer or a feed-forward takes most, or the logits do
    [("float32", 256), ("bfloat16", 256), ("float32", 8192)],
)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.architecture)
@pytest.mark.usefixtures("narrow_products")
def test_the_workspace_of_a_decode_step_is_what_torch_holds_at_its_peak(spec, dtype, vocab_size):
    config = resolve(spec).model_copy(update={"vocab_size": vocab_size})
    backend = reading_backend(config, spec.backend)
    model = build_model(config, dtype=getattr(torch, dtype), device="cpu", seed=0, backend=backend)
    expected = costs.decode_workspace_bytes(config, dtype, 24, DEPTH)
    assert expected == pytest.approx(workspace(model, 24), rel=0.02)


@cache
def resolve(spec):
    """Solving for a width takes a while."""
    return resolve_model(spec, "1m")


@torch.inference_mode()
def workspace(model, batch):
    """Peak of a step at a depth, beside the state that it leaves."""
    state = model.init_state(batch, DEPTH + 1)
    state.start_at(DEPTH - 1)
    tokens = torch.zeros(batch, 1, dtype=torch.int64)
    model(tokens, state)
    before = state.num_bytes
    use = measure_memory(lambda: model(tokens, state), torch.device("cpu"))
    return use.workspace_bytes - (state.num_bytes - before)


def test_a_concatenated_cache_is_read_and_written_once_more():
    plain, concat = (resolve(TransformerSpec(architecture="transformer", cache=cache)) for cache in CACHES)
    layers, entry = concat.num_layers, 2 * concat.d_model * 4  # a key and a value in float32
    moved = [costs.decode_bytes(config, "float32", 3, 1000) for config in (plain, concat)]
    assert moved[1] - moved[0] == 3 * layers * 2 * 1000 * entry
    held = {costs.state_bytes(config, "float32", 3, 1000) for config in (plain, concat)}
    assert held == {3 * layers * 1000 * entry}


def test_the_earlier_copy_of_a_concatenated_cache_takes_memory():
    plain, concat = (resolve(TransformerSpec(architecture="transformer", cache=cache)) for cache in CACHES)
    grown = [costs.decode_workspace_bytes(concat, "float32", 2, depth) for depth in (50_000, 50_001)]
    assert grown[1] - grown[0] == 2 * concat.d_model * 4
    largest = [costs.largest_batch(config, "float32", 10**10, 50_000) for config in (plain, concat)]
    assert largest[1] < largest[0]
    with pytest.raises(ValueError, match="give context_len"):
        costs.decode_workspace_bytes(concat, "float32", 2)


@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_the_largest_batch_fits_and_one_more_does_not(name):
    config, memory = LARGE[name], 80 * 10**9

    def needed(batch):
        state = costs.state_bytes(config, "bfloat16", batch, 8193)
        workspace = costs.decode_workspace_bytes(config, "bfloat16", batch)
        return costs.weight_bytes(config, "bfloat16") + state + workspace

    largest = costs.largest_batch(config, "bfloat16", memory, 8192)
    assert needed(largest) <= memory < needed(largest + 1)
    assert costs.largest_batch(config, "bfloat16", costs.weight_bytes(config, "bfloat16") - 1, 8192) == 0
