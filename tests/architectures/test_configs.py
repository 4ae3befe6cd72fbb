"""Configurations: the rotary base is a field, and the fingerprints of models with the usual one stay what they were."""

import json

from retbench.architectures.configs import parse_model_config
from retbench.architectures.retnet import retnet_config
from retbench.architectures.transformer import transformer_config

LLAMA = transformer_config(d_model=8, num_layers=1, num_heads=2, vocab_size=5, ffn_dim=8, num_kv_heads=1)
RETNET = retnet_config(d_model=8, num_layers=1, num_heads=2, vocab_size=5, ffn_dim=8, value_dim=16)


def test_the_usual_rotary_base_is_not_written() -> None:
    assert LLAMA.fingerprint == "960bc6d4234a"  # of records from before there was such a field
    for config in (LLAMA, RETNET):
        assert "rotary_base" not in config.model_dump()
        assert "rotary_base" not in json.loads(config.model_dump_json())
        assert parse_model_config(config.model_dump()) == config


def test_another_rotary_base_is_another_model() -> None:
    other = LLAMA.model_copy(update={"rotary_base": 500_000.0})
    assert other.model_dump()["rotary_base"] == 500_000.0
    assert other.fingerprint != LLAMA.fingerprint
    assert parse_model_config(other.model_dump()) == other
