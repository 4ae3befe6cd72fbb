"""What only a GPU can show: the forms in bfloat16, graphs equal to eager steps, and flash attention."""

import pytest
import torch

from retbench.cells import resolve_models
from retbench.config import load_experiment
from retbench.measure.clock import capture_graph
from retbench.models.build import build_model
from retbench.models.gate import LIMITS, relative_error, run_gate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CONFIGS = resolve_models(load_experiment("latency", ["size=25m"]), "cpu")


def build(name, dtype=torch.bfloat16, backend=None):
    backend = backend or ("chunkwise" if name == "retnet" else "sdpa")
    return build_model(CONFIGS[name], dtype=dtype, device="cuda", seed=0, backend=backend)


def text(length):
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(0)).cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_gate_is_green(name, dtype):
    gate = run_gate(build(name, dtype), text(4096), depth=4096)
    assert gate.passed, [check for check in gate.checks if not check.passed]


@pytest.mark.parametrize("name", sorted(CONFIGS))
@torch.no_grad()
def test_a_replayed_step_equals_an_eager_one(name):
    model = build(name)
    state = model.init_state(1, 1025)
    model.prefill(text(1024), state)
    mark, token, held = state.mark(), text(1), {}

    def step():
        held["logits"] = model(token, state)

    step()
    expected = held["logits"].clone()
    state.rewind(mark)

    def restarting_step():
        state.position = mark.position
        step()

    replay = capture_graph(restarting_step, device=torch.device("cuda"))
    for _ in range(3):
        state.rewind(mark)
        replay()
        torch.cuda.synchronize()
        assert relative_error(held["logits"], expected) < LIMITS[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_flash_equals_sdpa_equals_reference(dtype):
    pytest.importorskip("flash_attn", reason="needs the extra 'flash'")
    model = build("transformer", dtype, backend="reference")
    prompt = text(700)
    expected = model(prompt)
    for backend in ("sdpa", "flash"):
        model.set_backend(backend)
        state = model.init_state(1, 700)
        logits = [model.prefill(prompt[:, :690], state, segment_len=300)]
        logits += [model(prompt[:, t : t + 1], state) for t in range(690, 700)]
        assert relative_error(torch.cat(logits, dim=1), expected[:, 689:]) < LIMITS[dtype]
        assert model.ran()["prefill"].startswith(backend)
