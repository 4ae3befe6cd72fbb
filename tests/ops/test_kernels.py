"""Calls of flash-linear-attention and the use of its results, with its documented function in its place.

That function is written out here token by token; its own kernels run on GPUs, where `test_cuda` compares them.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from retbench.architectures.gla import GlaSpec
from retbench.architectures.linear import LinearSpec
from retbench.architectures.matching import resolve_model
from retbench.cli import app
from retbench.config.experiment_files import load_experiment
from retbench.errors import UnsupportedError
from retbench.models.build import build_model
from retbench.models.equivalence import check_equivalence, relative_error
from retbench.ops import kernels
from retbench.ops.decay import decay_schedule
from retbench.ops.linear_operator import linear_recurrent
from retbench.planning.cells import expand
from retbench.planning.plan import make_plan

CUDA = torch.device("cuda")


def chunk_simple_gla(
    q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None
):
    """h_t = exp(g_t) h_{t-1} + k_t^T v_t and o_t = scale q_t h_t, with the arguments that version 0.6 has."""
    batch, length, heads, key_dim = q.shape
    assert k.shape == q.shape
    assert v.shape[:3] == q.shape[:3]
    assert (g is None) != (g_gamma is None)
    decay = g if g is not None else g_gamma.expand(batch, length, heads)
    assert decay.dtype == torch.float32
    assert decay.shape == (batch, length, heads)
    assert output_final_state, "a state is what every form gives"
    shape = (batch, heads, key_dim, v.shape[-1])
    h = torch.zeros(shape) if initial_state is None else initial_state
    assert h.dtype == torch.float32
    assert h.shape == shape
    outs = []
    for t in range(length):
        h = decay[:, t].exp()[..., None, None] * h + k[:, t, :, :, None].float() * v[:, t, :, None, :].float()
        outs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t].float(), h))
    return torch.stack(outs, dim=1).to(q.dtype), h


def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """The same with a decay per channel: h_t = diag(exp(g_t)) h_{t-1} + k_t^T v_t."""
    batch, length, heads, key_dim = q.shape
    assert q.shape == k.shape == g.shape
    assert v.shape[:3] == q.shape[:3]
    assert g.dtype == torch.float32
    assert output_final_state, "a state is what every form gives"
    shape = (batch, heads, key_dim, v.shape[-1])
    h = torch.zeros(shape) if initial_state is None else initial_state
    assert h.dtype == torch.float32, "initial_state must be in float32."
    outs = []
    for t in range(length):
        h = g[:, t].exp()[..., None] * h + k[:, t, :, :, None].float() * v[:, t, :, None, :].float()
        outs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t].float(), h))
    return torch.stack(outs, dim=1).to(q.dtype), h


def fused_recurrent_gla(
    q, k, v, gk=None, gv=None, scale=None, initial_state=None, output_final_state=False, reverse=False
):
    """The same token by token; its decay has another name."""
    assert gv is None
    return chunk_gla(q, k, v, gk, scale, initial_state, output_final_state)


def make_inputs(length, kind):
    """q, k, v, log decay and state of 2 sequences and 3 heads; a fixed decay in float64, as a mixer holds it."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, 3, 4), (2, length, 3, 4), (2, length, 3, 6), (2, length, 3), (2, 3, 4, 6)]
    q, k, v, gate, state = (torch.randn(shape, generator=generator) for shape in shapes)
    fixed = decay_schedule("eq8", 3)
    if kind == "channels":
        gate = torch.randn(shapes[0], generator=generator)
    return [q, k, v, fixed if kind == "fixed" else torch.nn.functional.logsigmoid(gate), state]


def install(monkeypatch, function, version="0.6.0"):
    found = {} if version is None else {"fla-core": [SimpleNamespace(version=version)]}
    monkeypatch.setattr(kernels, "distributions", lambda name: found.get(name, []))
    for name in ("fla", "fla.ops", "fla.ops.simple_gla", "fla.ops.gla"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["fla.ops.simple_gla"].chunk_simple_gla = function
    sys.modules["fla.ops.gla"].chunk_gla = chunk_gla
    sys.modules["fla.ops.gla"].fused_recurrent_gla = fused_recurrent_gla


@pytest.fixture
def fla(monkeypatch):
    install(monkeypatch, chunk_simple_gla)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        (kernels.retention_fla, "fixed"),
        (kernels.retention_fla, "gated"),
        (kernels.gla_fla, "channels"),
        (kernels.gla_fla_recurrent, "channels"),
    ],
)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.usefixtures("fla")
def test_it_is_the_recurrent_form_with_its_gradients(kernel, kind, with_state, length):
    inputs = make_inputs(length, kind)
    found, expected = [], []
    for form, results in ((kernel, found), (linear_recurrent, expected)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        if kind == "fixed":
            leaves[3].requires_grad_(False)
        out, state = form(*leaves[:4], leaves[4] if with_state else None)
        weights = torch.arange(out.numel(), dtype=torch.float32).view(out.shape).sin()
        ((out * weights).sum() + state.square().sum()).backward()
        results += [out.detach(), state.detach(), *(x.grad for x in leaves if x.grad is not None)]
    assert len(found) == len(expected) == 2 + 3 + (kind != "fixed") + with_state
    for ours, reference in zip(found, expected, strict=True):
        assert relative_error(ours, reference) < 1e-4


@pytest.mark.parametrize("what", ["a decay per channel", "shared heads"])
@pytest.mark.usefixtures("fla")
def test_what_its_kernel_does_not_take_is_an_error(what):
    q, k, v, log_decay, state = make_inputs(9, "gated")
    if what == "shared heads":
        q, k = q[:, :, :1], k[:, :, :1]
    else:
        log_decay = log_decay[..., None].expand(*log_decay.shape, 4)
    with pytest.raises(ValueError, match=r"one decay per head and as many heads .* use backend 'chunkwise'"):
        kernels.retention_fla(q, k, v, log_decay, state)


@pytest.mark.parametrize("form", [kernels.gla_fla, kernels.gla_fla_recurrent])
@pytest.mark.parametrize("what", ["a decay per head", "shared heads"])
@pytest.mark.usefixtures("fla")
def test_what_the_kernels_of_a_decay_per_channel_do_not_take_is_an_error(form, what):
    q, k, v, log_decay, state = make_inputs(9, "gated" if what == "a decay per head" else "channels")
    if what == "shared heads":
        q, k = q[:, :, :1], k[:, :, :1]
    with pytest.raises(
        ValueError, match=r"one decay per channel and as many heads .* use backend 'chunkwise'"
    ):
        form(q, k, v, log_decay, state)


@pytest.mark.parametrize("backend", ["fla", "fla_recurrent"])
@pytest.mark.usefixtures("fla")
def test_the_gate_compares_the_kernels_of_a_decay_per_channel(monkeypatch, backend):
    monkeypatch.setattr(kernels, "missing_reason", lambda device, dtype, form: None)
    config = resolve_model(GlaSpec(architecture="gla"), "1m")
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=backend)
    tokens = torch.randint(0, 256, (1, 200), generator=torch.Generator().manual_seed(0))
    gate = check_equivalence(model, tokens, depth=200, lengths=(1, 17, 101))
    assert gate.passed, [check for check in gate.checks if not check.passed]
    assert f"chunkwise = {backend}" in {check.name for check in gate.checks}
    assert config.chunk_size("fla", 256) == 64


@pytest.mark.parametrize("decay", ["eq8", "gated"])
@pytest.mark.usefixtures("fla")
def test_the_gate_compares_it_and_a_model_says_that_it_ran(monkeypatch, decay):
    monkeypatch.setattr(kernels, "missing_reason", lambda device, dtype: None)
    (cell,) = expand_one(f"models.retnet.decay={decay}")
    model = build_model(
        cell.model, dtype=torch.float32, device="cpu", seed=0, backend="fla", chunk_size=cell.chunk_size
    )
    tokens = torch.randint(0, 256, (1, 200), generator=torch.Generator().manual_seed(0))
    gate = check_equivalence(model, tokens, depth=200, lengths=(1, 17, 101))
    assert gate.passed, [check for check in gate.checks if not check.passed]
    assert {"chunkwise = fla", "recurrent = fla", "decode = fla"} <= {check.name for check in gate.checks}
    state = model.init_state(1, 8)
    model.set_backend("fla")
    with torch.no_grad():
        model(tokens[:, :7], state)
        model(tokens[:, 7:8], state)
    assert model.executed_backends() == {"prefill": "fla", "decode": "recurrent"}


@pytest.mark.usefixtures("fla")
def test_the_gate_compares_it_for_linear_attention_that_is_not_normalised(monkeypatch):
    monkeypatch.setattr(kernels, "missing_reason", lambda device, dtype: None)
    config = resolve_model(LinearSpec(architecture="linear", variant="identity"), "1m")
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="fla")
    tokens = torch.randint(0, 256, (1, 200), generator=torch.Generator().manual_seed(0))
    gate = check_equivalence(model, tokens, depth=200, lengths=(1, 17, 101))
    assert gate.passed, [check for check in gate.checks if not check.passed]
    assert {"chunkwise = fla", "recurrent = fla"} <= {check.name for check in gate.checks}
    assert config.chunk_size("fla", 256) == 64


@pytest.mark.parametrize("variant", ["elu", "performer", "taylor"])
@pytest.mark.usefixtures("fla")
def test_features_in_float32_are_refused(monkeypatch, variant):
    monkeypatch.setattr(kernels, "missing_reason", lambda device, dtype: None)
    config = resolve_model(LinearSpec(architecture="linear", variant=variant), "1m")
    with pytest.raises(
        UnsupportedError, match=rf"map '{variant}' .* TensorFloat-32; use backend 'chunkwise'"
    ):
        build_model(config, dtype=torch.bfloat16, device="cpu", seed=0, backend="fla")


def test_without_fla_linear_attention_says_why():
    config = resolve_model(LinearSpec(architecture="linear", variant="identity"), "1m")
    with pytest.raises(UnsupportedError, match="CUDA devices only; use backend 'chunkwise'"):
        build_model(config, dtype=torch.bfloat16, device="cpu", seed=0, backend="fla")


def expand_one(*overrides):
    """The cells of a RetNet on the backend fla at one point."""
    settings = make_plan("latency", profile="smoke", device="cpu", limit=1, overrides=["size=1m"]).settings
    one_point = "workloads={decode={context_len=[64]}}"
    experiment = load_experiment(
        "latency", ["size=1m", one_point, "models.retnet.backend=fla", *overrides], profile="smoke"
    )
    return [cell for cell in expand(experiment, "smoke", settings) if cell.model_name == "retnet"]


def test_its_operations_are_counted_by_its_own_chunks():
    (cell,) = expand_one("models.retnet.chunk_size=256")
    assert (cell.backend, cell.chunk_size) == ("fla", 64)


def test_why_it_cannot_run_and_what_to_do(monkeypatch):
    assert "use backend 'chunkwise'" in kernels.missing_reason(torch.device("cpu"), torch.bfloat16)
    assert "TensorFloat-32" in kernels.missing_reason(CUDA, torch.float32)
    assert "not float64; use --dtype bfloat16" in kernels.missing_reason(CUDA, torch.float64)
    assert "TensorFloat-32" in kernels.missing_reason(CUDA, torch.float32, kernels.gla_fla)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'retbench[kernels]'" in kernels.missing_reason(CUDA, torch.bfloat16)
    # It multiplies no matrices, so that float32 is as precise as in other forms.
    reason = kernels.missing_reason(CUDA, torch.float32, kernels.gla_fla_recurrent)
    assert "pip install 'retbench[kernels]'" in reason


@pytest.mark.parametrize(
    ("version", "shown"),
    [("0.4.0", "0.4.0"), ("0.5.1", "0.5.1"), ("0.6.0rc1", "0.6.0rc1"), (None, "unknown")],
)
def test_a_version_whose_kernels_are_not_tuned_for_each_width_is_refused(monkeypatch, version, shown):
    install(monkeypatch, chunk_simple_gla, version)
    reason = kernels.missing_reason(CUDA, torch.bfloat16)
    assert reason.startswith("flash-linear-attention 0.6 or newer is needed")
    assert f"the installed version is {shown}: pip install --upgrade 'retbench[kernels]'" in reason


@pytest.mark.parametrize("version", ["0.6.0", "0.10.0", "1.0"])
def test_an_installation_that_is_of_no_use_is_distinguished_from_none(monkeypatch, version):
    install(monkeypatch, chunk_simple_gla, version)
    monkeypatch.setattr(kernels, "_launch_problem", lambda device, dtype, form: None)
    assert kernels.missing_reason(CUDA, torch.bfloat16) is None
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", None)
    assert "cannot be imported (ModuleNotFoundError: " in kernels.missing_reason(CUDA, torch.float16)


def test_kernels_that_cannot_be_launched_are_found_out_once(monkeypatch):
    launched = []

    def uncompiled(q, *_, g_gamma=None, **__):
        launched.append(q.shape)
        raise RuntimeError("Failed to find C compiler.\n Please specify via CC environment variable.")

    install(monkeypatch, uncompiled)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, **options: zeros(*shape, **options))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    kernels._launch_problem.cache_clear()
    for _ in range(2):
        reason = kernels.missing_reason(CUDA, torch.bfloat16)
        assert "cannot be launched (RuntimeError: Failed to find C compiler. Please" in reason
        assert "use backend 'chunkwise'" in reason
    kernels._launch_problem.cache_clear()
    assert len(launched) == 1


def test_an_error_after_which_the_device_cannot_be_used_is_no_fault_of_the_kernels(monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        kernels.launch_problem(fail, CUDA, "kernels", "use others")


def test_asked_for_and_absent_is_an_error():
    (cell,) = expand_one()
    with pytest.raises(UnsupportedError, match=r"retnet backend 'fla' cannot run here: .*CUDA devices only"):
        build_model(cell.model, dtype=torch.float32, device="cpu", seed=0, backend="fla")
    done = CliRunner().invoke(
        app, ["verify", "retnet", "--backend", "fla", "--device", "cpu", "--size", "1m"]
    )
    assert done.exit_code == 3
    assert "backend 'fla' cannot run here" in done.stderr
    assert "use backend 'chunkwise'" in done.stderr
