"""Bars on all models of the experiment `kin`: which models each is about."""

import pytest
import torch

from benchmarks.peers import kin, pairs
from retbench.architectures.configs import ModelConfig

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def configs() -> dict[str, ModelConfig]:
    return {name: pairs.kin_configs("300k")[name] for name in ("retnet", "transformer", "mamba2")}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, configs: dict[str, ModelConfig]) -> None:
    monkeypatch.setattr(pairs, "kin_configs", lambda *size: configs)
    monkeypatch.setattr(kin, "SHALLOW", 16)
    monkeypatch.setattr(kin, "DEEP", 64)


def test_depth_is_compared_where_the_state_is_fixed() -> None:
    with torch.inference_mode():
        found = {one.bar: one for one in kin.depth(2, low=0.95, high=1.05)}
    assert list(found) == [
        "depth: retnet, state bytes",
        "depth: retnet",
        "depth: mamba2, state bytes",
        "depth: mamba2",
    ]
    assert found["depth: retnet, state bytes"].ratio == 1.0
    assert found["depth: mamba2"].ours > 0


def test_the_bandwidth_of_every_model_is_compared_with_that_of_a_read_of_as_many_bytes() -> None:
    found = {one.bar.rpartition(" ")[2]: one for one in kin.bandwidth(2, "300k", limit=0.5)}
    assert list(found) == ["retnet", "transformer", "mamba2"]
    assert all(one.ours > 0 and one.theirs > 0 for one in found.values())
