"""The gate lets equal forms pass and stops a model whose forms differ."""

import pytest
import torch

from retbench.cells import resolve_models
from retbench.config import load_experiment
from retbench.errors import ConfigError
from retbench.models import mixers
from retbench.models.build import build_model
from retbench.models.gate import relative_error, run_gate

TEXT = torch.randint(0, 256, (1, 600), generator=torch.Generator().manual_seed(0))
LENGTHS = (1, 17, 127, 301)
CONFIGS = resolve_models(load_experiment("latency", ["size=1m"]), "cpu")


def build(name, dtype=torch.float32):
    backend = "chunkwise" if name == "retnet" else "sdpa"
    return build_model(CONFIGS[name], dtype=dtype, device="cpu", seed=0, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_equal_forms_pass(name, dtype):
    gate = run_gate(build(name, dtype), TEXT, depth=600, lengths=LENGTHS)
    assert gate.passed, [check for check in gate.checks if not check.passed]
    compared = {check.name for check in gate.checks}
    expected = {"parallel = chunkwise", "recurrent = chunkwise"} if name == "retnet" else {"reference = sdpa"}
    assert expected <= compared
    assert {check.length for check in gate.checks} == {*LENGTHS, 600}


def test_a_step_that_forgets_to_decay_is_stopped(monkeypatch):
    honest = mixers.retention_decayed_step_

    def forgetful(q, k, v, decay, state):
        return honest(q, k, v, torch.ones_like(decay), state)

    monkeypatch.setattr(mixers, "retention_decayed_step_", forgetful)
    gate = run_gate(build("retnet"), TEXT, depth=600, lengths=LENGTHS)
    assert not gate.passed
    assert "decode = chunkwise" in {check.name for check in gate.checks if not check.passed}


def test_a_cache_written_at_the_wrong_place_is_stopped(monkeypatch):
    honest = mixers.KVCache.append
    monkeypatch.setattr(
        mixers.KVCache, "append", lambda self, k, v, start: honest(self, k, v, max(0, start - 1))
    )
    assert not run_gate(build("transformer"), TEXT, depth=600, lengths=LENGTHS).passed


def test_nothing_but_numbers_passes():
    nothing = torch.full((3,), torch.nan)
    assert relative_error(nothing, torch.ones(3)) == float("inf")


def test_too_little_text_is_refused():
    with pytest.raises(ConfigError, match="needs 2047 tokens of text and got 600"):
        run_gate(build("retnet"), TEXT, depth=10)


def test_the_backend_is_what_it_was():
    model = build("retnet")
    model.set_backend("parallel")
    run_gate(model, TEXT, depth=600, lengths=LENGTHS)
    assert model.backend == "parallel"


def test_the_backend_is_what_it_was_even_where_a_form_finds_no_memory(monkeypatch):
    def starve(*_):
        raise MemoryError

    model = build("retnet")
    monkeypatch.setattr(model.mixers[0], "forms", model.mixers[0].forms | {"recurrent": starve})
    with pytest.raises(MemoryError):
        run_gate(model, TEXT, depth=600, lengths=LENGTHS)
    assert model.backend == "chunkwise"
