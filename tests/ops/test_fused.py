"""Fused operators: requirements on inputs and device, and the kernels under Triton's interpreter."""

import sys

import pytest
import torch

from retbench.measure.source import WORKER, import_closure
from retbench.ops import fused, fused_linear
from tests.measure.forked import run_forked
from tests.ops.own_process import run_in_own_process

CUDA = torch.device("cuda")


def test_kernels_equal_the_eager_operators():
    run_in_own_process("tests/ops/interpreted_fused.py", TRITON_INTERPRET="1")


def test_kernels_compile_for_gpus(tmp_path):
    run_in_own_process("tests/ops/compiled_fused.py", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")


def test_no_kernel_is_imported_before_one_is_launched():
    assert run_forked("import sys, retbench.ops.fused; print('triton' in sys.modules)") == "False"


def test_an_edit_of_a_kernel_makes_records_out_of_date():
    kernels = {"retbench.ops.fused_kernels", "retbench.ops.fused_linear_kernels"}
    assert kernels <= set(import_closure((WORKER,), skip_parts=True))


def test_why_they_cannot_run_and_what_to_do(monkeypatch):
    assert "CUDA devices only; use decode operators 'eager'" in fused.missing_reason(
        torch.device("cpu"), torch.bfloat16
    )
    assert "too coarse for float64" in fused.missing_reason(CUDA, torch.float64)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'retbench[kernels]'" in fused.missing_reason(CUDA, torch.bfloat16)


def test_kernels_that_cannot_be_launched_are_found_out_once(monkeypatch):
    launched = []

    def uncompiled(x, factor, kind):
        launched.append(x)
        raise RuntimeError("Failed to find C compiler.\n Please specify via CC environment variable.")

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, **options: zeros(*shape, **options))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(fused, "activate", uncompiled)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    fused._launch_problem.cache_clear()
    for _ in range(2):
        reason = fused.missing_reason(CUDA, torch.bfloat16)
        assert "cannot be launched (RuntimeError: Failed to find C compiler. Please" in reason
        assert "use decode operators 'eager'" in reason
    fused._launch_problem.cache_clear()
    assert len(launched) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED"),
    ],
    ids=repr,
)
def test_a_full_device_is_no_reason(monkeypatch, error):
    def full(x, factor, kind):
        raise error

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, **options: zeros(*shape, **options))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(fused, "activate", full)
    with pytest.raises(RuntimeError) as caught:
        fused.missing_reason(CUDA, torch.float16)
    assert caught.value is error


def test_memory_that_a_kernel_would_misread_is_refused():
    state, decay = torch.zeros(1, 2, 4, 6), torch.ones(2)
    q, v = torch.zeros(1, 2, 4), torch.zeros(1, 2, 6)
    with pytest.raises(ValueError, match="heads must be adjacent"):
        fused_linear.linear_step(torch.zeros(1, 4, 2).mT, q, v, decay, state)
    with pytest.raises(ValueError, match="heads must be adjacent"):
        fused_linear.linear_step(q, q, v, torch.ones(1, 2, 2)[..., 0], state)
    with pytest.raises(ValueError, match="state must be contiguous float32"):
        fused_linear.linear_step(q, q, v, decay, state.bfloat16())
    with pytest.raises(ValueError, match=r"gate must be one of .*'sigmoid'.*, got 'swish'"):
        fused_linear.linear_step(q, q, v, decay, state, gate="swish")
    with pytest.raises(ValueError, match="activation must be one of"):
        fused.activate(q[0], None, "tanh")
    with pytest.raises(ValueError, match="feature map must be one of"):
        fused_linear.linear_step(q, q, v, decay, state, feature_map="relu")
    with pytest.raises(ValueError, match="x must be contiguous"):
        fused.norm(torch.zeros(4, 2).T, None, None, "rms", 1e-6)
    with pytest.raises(ValueError, match="state must be contiguous"):
        fused_linear.shift(torch.zeros(1, 4), torch.zeros(1, 4, 2).mT[:, :1], torch.ones(1, 1, 4), keeps=True)
    with pytest.raises(ValueError, match=r"state must be contiguous torch\.float32"):
        fused_linear.convolution_step(q[0], torch.zeros(4, 3), None, torch.zeros(2, 2, 4).bfloat16())
    qkv, table, position = torch.zeros(1, 12), torch.zeros(2), torch.tensor([0])
    caches = torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 9, 4)
    with pytest.raises(ValueError, match="same strides"):
        fused.rotate_and_cache(qkv, table, table, "half", position, *caches, 0, 0)


@torch.no_grad()
def test_a_call_runs_no_python_code_of_torch(monkeypatch):
    """A step outside of a CUDA graph waits for such code, which has taken longer than the kernels."""
    for module in (fused, fused_linear):
        monkeypatch.setattr(module, "launch", lambda *arguments, **options: None)
    q, v = torch.zeros(1, 2, 4), torch.zeros(1, 2, 6)
    files = []
    sys.setprofile(lambda frame, event, argument: files.append(frame.f_code.co_filename))
    fused_linear.linear_step(q, q, v, torch.ones(2), torch.zeros(1, 2, 4, 6))
    fused.norm(q[0], torch.ones(4, requires_grad=True), None, "rms", 1e-6)
    sys.setprofile(None)
    assert fused.__file__ in files
    assert not [name for name in files if "/torch/_library/" in name]


@pytest.mark.parametrize(
    ("num_heads", "value_dim", "block"),
    [(8, 512, 32), (32, 512, 64), (64, 512, 128), (2048, 24, 32), (1, 1024, 32)],
)
def test_a_small_batch_is_split_into_more_programs(num_heads, value_dim, block):
    assert fused_linear.value_block(num_heads, value_dim) == block
