"""Configurations: what was dumped is read again, older ones too, and every field makes another model."""

import pytest
from pydantic import ValidationError

from retbench.architectures.configs import ModelConfig, parse_model_config
from retbench.architectures.retnet import retnet_config
from retbench.architectures.transformer import transformer_config

SIZES = {"d_model": 8, "num_layers": 3, "num_heads": 2, "vocab_size": 5, "ffn_dim": 8}
LLAMA = transformer_config(**SIZES, num_kv_heads=1)
RETNET = retnet_config(**SIZES, value_dim=16)
FLAT = {
    "retnet": {
        **SIZES,
        "norm_eps": 1e-6,
        "architecture": "retnet",
        "variant": "fla",
        "value_dim": 16,
        "decay": "eq8",
    },
    "transformer": {
        **SIZES,
        "norm_eps": 1e-6,
        "architecture": "transformer",
        "variant": "llama",
        "num_kv_heads": 1,
    },
}
"""Configurations as records and checkpoints had them before mixers."""


@pytest.mark.parametrize("config", [LLAMA, RETNET])
def test_what_was_dumped_is_read_again(config: ModelConfig) -> None:
    assert parse_model_config(config.model_dump()) == config
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_flat_configurations_of_older_records_are_the_same_models() -> None:
    assert parse_model_config(FLAT["retnet"]) == RETNET
    assert parse_model_config({**FLAT["retnet"], "swish_gate": True, "head_norm": True}) == RETNET
    assert parse_model_config(FLAT["transformer"]) == LLAMA


def test_equal_blocks_are_counted_together() -> None:
    assert [block.count for block in RETNET.blocks] == [3]
    assert RETNET.num_layers == len(list(RETNET.layers)) == 3


def test_another_rotary_base_is_another_model() -> None:
    other = transformer_config(**SIZES, num_kv_heads=1, rotary_base=500_000.0)
    assert other.fingerprint != LLAMA.fingerprint
    assert parse_model_config(other.model_dump()) == other


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "retnet", "blocks": []},
        {"norm": "batch"},
        {"blocks": [{"mixer": {"mixer": "retention", "d_model": 8, "num_heads": 3, "value_dim": 9}}]},
        {"blocks": [{"mixer": {"mixer": "retention", "d_model": 16, "num_heads": 2, "value_dim": 8}}]},
        {"unknown": 1},
    ],
)
def test_what_is_no_model_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        parse_model_config({**RETNET.model_dump(), **changes})
