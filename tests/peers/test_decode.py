"""The decode bars: which sides are timed, and only after their logits have been shown equal."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from benchmarks.peers import decode, pairs
from benchmarks.peers.outcomes import Outcome

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
]

TOPICS = [
    "decode-llama-1k: equality",
    "decode-llama-1k: equality, static cache",
    "decode-llama-1k",
    "decode-llama-1k: static cache",
]


def outcomes(monkeypatch: pytest.MonkeyPatch, *, error_of_static: float) -> list[Outcome]:
    """Run the bar on a tiny model without compiling; its times are made up, as are errors of the static cache."""
    from benchmarks.peers import hf_llama

    generate = hf_llama.generate

    def eager(*arguments: Any, static: bool = False, **options: Any) -> hf_llama.Generated:
        found = generate(*arguments, **options)
        return found._replace(logits=found.logits + error_of_static) if static else found

    def step_s(*arguments: Any, static: bool = False, **options: Any) -> float:
        return 2.0 if static else 4.0

    config = pairs.llama_config("1m")
    monkeypatch.setattr(pairs, "llama_config", lambda: config)
    monkeypatch.setattr(hf_llama, "generate", eager)
    monkeypatch.setattr(hf_llama, "median_step_s", step_s)
    monkeypatch.setattr(decode, "OurDecoding", lambda *arguments, **options: lambda: 1.0)
    with torch.inference_mode():
        return list(decode.decode_llama(2, 1024, limit=0.3, static_limit=1.0))


def test_a_static_cache_is_a_peer_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(monkeypatch, error_of_static=0.0)
    assert [one.bar for one in found] == TOPICS
    assert [one.ratio for one in found[2:]] == pytest.approx([0.25, 0.5])
    assert [one.limit.high for one in found[2:]] == [0.3, 1.0]
    assert [one.theirs for one in found[2:]] == pytest.approx([4.0, 2.0])


def test_nothing_is_timed_if_the_static_cache_gives_other_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(monkeypatch, error_of_static=0.1)
    assert [one.bar for one in found] == TOPICS[:2]
    assert [one.holds for one in found] == [True, False]


def test_a_model_of_transformers_is_timed_after_its_logits_are_those_of_the_static_cache() -> None:
    fields = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
    }
    found = list(decode.decode_hf(2, 64, limit=1.05, fields=fields))
    assert [one.bar for one in found] == ["decode-hf-0k: equality", "decode-hf-0k"]
    assert found[0].holds
    assert min(found[1].ours, found[1].theirs) > 0
