"""Both sides get a turn in every round, and every turn of ours starts at the same depth."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.peers import pairs
from benchmarks.peers.rounds import TIMED_STEPS, WARM_STEPS, OurDecoding, interleave, time_greedy
from retbench.architectures.configs import ModelConfig
from retbench.architectures.retnet import retnet_config
from retbench.architectures.transformer import transformer_config

pytestmark = pytest.mark.peers

RETNET = retnet_config(d_model=32, num_layers=2, num_heads=2, vocab_size=61, ffn_dim=24, value_dim=64)
TRANSFORMER = transformer_config(
    d_model=32, num_layers=2, num_heads=2, num_kv_heads=2, vocab_size=61, ffn_dim=40
)


def test_each_side_is_called_once_before_and_measured_once_a_round_in_varying_order() -> None:
    calls: list[str] = []

    def side(name: str) -> Callable[[], float]:
        def measure() -> float:
            calls.append(name)
            return float(len(calls))

        return measure

    values = interleave({name: side(name) for name in "abc"}, 6)
    assert calls[:3] == ["a", "b", "c"]
    rounds = [calls[start : start + 3] for start in range(3, 21, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1
    assert [len(found) for found in values.values()] == [6, 6, 6]
    assert sorted(value for found in values.values() for value in found) == [float(n) for n in range(4, 22)]


def test_greedy_steps_feed_back_the_likeliest_token() -> None:
    seen: list[int] = []

    def step(token: torch.Tensor) -> torch.Tensor:
        seen.append(int(token))
        return torch.nn.functional.one_hot((token + 2) % 7, 7).float()  # (1, 1, 7)

    assert time_greedy(step, torch.tensor([[1]])) > 0
    assert seen[:5] == [1, 3, 5, 0, 2]
    assert len(seen) == WARM_STEPS + TIMED_STEPS


@pytest.mark.parametrize("config", [RETNET, TRANSFORMER])
def test_every_turn_starts_at_the_same_depth(config: ModelConfig) -> None:
    with torch.inference_mode():
        decoding = OurDecoding(pairs.plain(config), pairs.random_tokens(config, 21))
        decoding()
        end = {name: tensor.clone() for name, tensor in decoding.state.tensors().items()}
        assert decoding.state.position == 21 + WARM_STEPS + TIMED_STEPS
        decoding()
        for name, tensor in decoding.state.tensors().items():
            assert torch.equal(tensor, end[name])
