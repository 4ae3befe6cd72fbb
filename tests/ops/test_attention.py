"""The attention backends against each other, and what they say of themselves."""

import importlib
import inspect
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from retbench.models.equivalence import relative_error
from retbench.ops import attention
from retbench.ops.attention import (
    BACKENDS,
    attend_flash,
    attend_products,
    attend_reference,
    attend_sdpa,
    chosen_backend,
    executed_kernel,
    missing_reason,
    sdpa_kernel,
)
from retbench.ops.linear import FewestKeys

CUDA = torch.device("cuda")


def make_inputs(length, keys, heads=4, kv_heads=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length + keys)
    q = torch.randn(2, heads, length, 8, generator=generator, dtype=dtype)
    k, v = (torch.randn(2, kv_heads, keys, 8, generator=generator, dtype=dtype) for _ in range(2))
    return q, k, v


def test_reference_is_the_definition():
    q, k, v = make_inputs(3, 5)
    out = attend_reference(q, k, v)
    for t in range(3):
        seen = 5 - 3 + t + 1
        scores = torch.stack([(q[0, 1, t] * k[0, 1, s]).sum() / 8**0.5 for s in range(seen)])
        assert torch.allclose(out[0, 1, t], scores.softmax(0) @ v[0, 1, :seen])


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("length", "keys"), [(1, 1), (1, 33), (33, 33), (7, 40), (40, 41)])
@pytest.mark.parametrize("attend", [attend_sdpa, attend_products])
def test_every_backend_equals_reference_at_any_offset(length, keys, kv_heads, attend):
    q, k, v = make_inputs(length, keys, kv_heads=kv_heads)
    assert relative_error(attend(q, k, v), attend_reference(q, k, v)) < 1e-12


def test_products_say_that_only_a_single_query_is_theirs():
    assert executed_kernel("products", *make_inputs(1, 9)) == "products"
    assert executed_kernel("products", *make_inputs(9, 9, dtype=torch.float32)).startswith("sdpa:")
    assert executed_kernel("reference", *make_inputs(9, 9)) == "reference"


@pytest.mark.parametrize(
    ("name", "length", "kv_heads", "alone", "shared", "chosen"),
    [
        ("auto", 1, 4, 9, None, "products"),
        ("auto", 1, 4, 10, 1, "sdpa"),
        ("auto", 1, 4, None, 1, "sdpa"),
        ("auto", 1, 2, None, 9, "products"),
        ("auto", 1, 1, None, 9, "products"),
        ("auto", 1, 2, 1, 10, "sdpa"),
        ("auto", 1, 2, 1, None, "sdpa"),
        ("auto", 7, 4, 9, 9, "sdpa"),
        ("sdpa", 1, 4, 9, 9, "sdpa"),
        ("products", 1, 2, None, None, "products"),
    ],
)
def test_only_auto_chooses_and_only_for_single_queries_of_many_keys(
    name, length, kv_heads, alone, shared, chosen
):
    products_from = FewestKeys(alone, shared)
    q, k, v = make_inputs(length, 9, kv_heads=kv_heads)
    assert chosen_backend(name, q, k, products_from) == chosen
    expected = BACKENDS[chosen](q, k, v)
    assert torch.equal(attention.attend(name, q, k, v, products_from), expected)


def test_compiled_code_chooses_anew_for_every_number_of_keys():
    attend = torch.compile(
        lambda q, k, v: attention.attend("auto", q, k, v, FewestKeys(33)), fullgraph=True, dynamic=True
    )
    with torch.inference_mode(), torch.compiler.set_stance("default"):
        attend(*make_inputs(1, 20))
        with torch.compiler.set_stance("fail_on_recompile"):
            for keys in (32, 33, 40):
                q, k, v = make_inputs(1, keys)
                assert torch.equal(attend(q, k, v), BACKENDS["products" if keys >= 33 else "sdpa"](q, k, v))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_compiled_step_calls_the_products_and_reads_a_part_of_a_cache_in_place(kv_heads):
    q, k, v = make_inputs(1, 64, kv_heads=kv_heads, dtype=torch.float32)
    expected = attend_reference(q, k[:, :, :33], v[:, :, :33])
    attend = torch.compile(lambda q, k, v: attend_products(q, k[:, :, :33], v[:, :, :33]), fullgraph=True)
    with torch.inference_mode(), torch.compiler.set_stance("default"):
        attend(q, k, v)
        with torch.profiler.profile(record_shapes=True) as profiler:
            out = attend(q, k, v)
    assert relative_error(out, expected) < 1e-5
    events = profiler.key_averages(group_by_input_shape=True)
    assert "retbench::average_values" in {event.key for event in events}
    copied = [shape for event in events if event.key == "aten::copy_" for shape in event.input_shapes]
    assert not [shape for shape in copied if shape[-2:] == [33, 8]]


def test_products_have_gradients():
    q, k, v = (one.requires_grad_() for one in make_inputs(1, 9))
    ours, definition = (attend(q, k, v).sum() for attend in (attend_products, attend_reference))
    for one, other in zip(*(torch.autograd.grad(out, (q, k, v)) for out in (ours, definition)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_reference_copies_keys_only_where_heads_share_them():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        attend_reference(*make_inputs(1, 9))
    assert "aten::repeat_interleave" not in {event.key for event in profiled.key_averages()}


def test_grouped_heads_share_neighbouring_keys():
    q, k, v = make_inputs(5, 5, heads=4, kv_heads=2)
    out = attend_reference(q, k, v)
    alone = attend_reference(q[:, 3:4], k[:, 1:2], v[:, 1:2])
    assert torch.allclose(out[:, 3:4], alone)


def test_queries_that_share_keys_are_given_to_the_kernel_in_a_row(monkeypatch):
    attend, given = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, *rest, **more: given.append((tuple(q.shape), more)) or attend(q, *rest, **more),
    )
    q, k, v = make_inputs(1, 33, heads=8, kv_heads=2)
    assert attend_sdpa(q, k, v).shape == q.shape
    assert given == [((2, 2, 4, 8), {})]


def test_cudnn_is_not_among_the_kernels_that_torch_may_pick():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(("length", "keys"), [(1, 9), (9, 9), (4, 9)])
def test_torch_names_the_kernel_it_picks(length, keys):
    assert sdpa_kernel(*make_inputs(length, keys, dtype=torch.float32)) in ("flash", "math")


@pytest.mark.parametrize(
    ("usable", "name"), [({"flash", "efficient"}, "flash"), ({"efficient"}, "efficient"), (set(), "math")]
)
def test_for_an_aligned_mask_on_a_gpu_torch_is_asked_as_its_bias_asks(monkeypatch, usable, name):
    q, k, v = make_inputs(4, 9, dtype=torch.float32)
    asked = []

    class OnGpu(torch.Tensor):
        """Says that it is on a GPU; its values are here."""

        device = torch.device("cuda")

    def can_use(kernel):
        def answer(params):
            asked.append((kernel, params))
            return kernel in usable

        return answer

    monkeypatch.setattr(torch.backends.cuda, "SDPAParams", lambda *given: given[3:])
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", can_use("flash"))
    monkeypatch.setattr(torch.backends.cuda, "can_use_efficient_attention", can_use("efficient"))
    monkeypatch.setattr(torch, "ones", lambda *shape, dtype, device: torch.full(shape, True))
    monkeypatch.setattr(
        torch, "_fused_sdp_choice", lambda q, k, v, mask, *rest, **more: 0 if mask is not None else 1
    )
    assert sdpa_kernel(q.as_subclass(OnGpu), k, v) == name
    assert {params for _, params in asked} == {(None, 0.0, False, False)}


def test_flash_says_why_it_cannot_run_and_what_to_do(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "use backend 'sdpa'" in (missing_reason("flash", torch.device("cpu"), torch.bfloat16) or "")
    assert "--dtype bfloat16" in (missing_reason("flash", torch.device("cuda"), torch.float32) or "")
    assert "pip install 'retbench[flash]'" in (missing_reason("flash", CUDA, torch.bfloat16) or "")
    assert missing_reason("reference", torch.device("cpu"), torch.float32) is None


def pretend_flash(monkeypatch, **functions):
    module = ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.mark.parametrize(("capability", "words"), [((7, 5), "has 7.5; use backend 'sdpa'"), ((8, 0), None)])
def test_flash_needs_a_gpu_that_it_is_built_for(monkeypatch, capability, words):
    pretend_flash(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = missing_reason("flash", CUDA, torch.float16)
    assert reason is None if words is None else words in reason


def test_a_flash_build_for_another_torch_is_distinguished_from_none(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: _ZN3c104cuda\n (flash_attn_2_cuda.so)")

    pretend_flash(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("importlib.import_module", broken)
    reason = missing_reason("flash", CUDA, torch.float16)
    assert reason.startswith(
        "flash-attn cannot be imported (ImportError: undefined symbol: _ZN3c104cuda (flash"
    )


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("length", "keys"), [(1, 33), (33, 33), (7, 40)])
def test_flash_is_given_heads_after_tokens_and_a_cache_as_it_lies(monkeypatch, length, keys, kv_heads):
    called = []

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        assert causal
        called.append("flash_attn_func")
        return attend_reference(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, cache_seqlens=None, causal=False):
        assert k_cache.stride(-1) == v_cache.stride(-1) == 1
        assert not torch.is_grad_enabled(), "it has no backward pass"
        called.append("flash_attn_with_kvcache")
        return attend_reference(*(x.transpose(1, 2) for x in (q, k_cache, v_cache))).transpose(1, 2)

    pretend_flash(
        monkeypatch, flash_attn_func=flash_attn_func, flash_attn_with_kvcache=flash_attn_with_kvcache
    )
    q, k, v = make_inputs(length, keys, kv_heads=kv_heads)
    for with_gradients in (True, False):
        with torch.set_grad_enabled(with_gradients):
            assert relative_error(attend_flash(q, k, v), attend_reference(q, k, v)) < 1e-12
    assert called == ["flash_attn_func", "flash_attn_with_kvcache" if length == 1 else "flash_attn_func"]


class Handle:
    """Stands for the handle of an activated version."""

    def __init__(self, log):
        self.log = log

    def remove(self):
        self.log.append("removed")


@pytest.fixture
def version3(monkeypatch):
    """FlashAttention 3 as torch's registry would have it, and the log of what is done with it."""
    log = []
    registry = torch.nn.attention._registry
    monkeypatch.setattr(registry, "_FLASH_ATTENTION_ACTIVE", None)
    monkeypatch.setitem(
        registry._FLASH_ATTENTION_IMPLS, "FA3", lambda: log.append("activated") or Handle(log)
    )
    monkeypatch.setattr(attention, "_active_flash", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return log


REPLACES_FLASH = pytest.mark.skipif(
    not hasattr(torch.nn.attention, "restore_flash_attention_impl"),
    reason="this torch cannot replace its flash kernel",
)


@REPLACES_FLASH
def test_torch_has_the_versions_of_flash_attention_that_are_named():
    names = {version.name for version in attention._FLASH_VERSIONS.values()}
    assert names <= set(torch.nn.attention.list_flash_attention_impls())
    for module in ("_fa3", "_fa4"):
        register = getattr(
            importlib.import_module(f"torch.nn.attention.{module}"), f"register_flash_attention{module}"
        )
        default = inspect.signature(register).parameters["module_path"].default
        assert default in {version.module for version in attention._FLASH_VERSIONS.values()}


@REPLACES_FLASH
def test_a_version_is_activated_once_and_sdpa_runs_torchs_own_again(version3):
    q, k, v = make_inputs(9, 9, dtype=torch.float32)
    expected = attend_reference(q, k, v)
    for _ in range(2):
        assert relative_error(BACKENDS["flash3"](q, k, v), expected) < 1e-5
    assert version3 == ["activated"]
    attend_sdpa(q, k, v)
    attend_sdpa(q, k, v)
    assert version3 == ["activated", "removed"]
    assert executed_kernel("flash3", q, k, v) == "flash3"


@REPLACES_FLASH
def test_a_version_runs_no_other_kernel(version3):
    seen = []

    def record(*args, **options):
        enabled = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled())
        seen.append((*enabled, torch.backends.cuda.mem_efficient_sdp_enabled()))
        return args[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_call_sdpa", record)
        BACKENDS["flash3"](*make_inputs(9, 9))
        attend_sdpa(*make_inputs(9, 9))
    assert seen == [(True, False, False), (True, True, True)]


@REPLACES_FLASH
def test_a_version_that_can_be_activated_is_usable_and_left_inactive(version3):
    assert missing_reason("flash3", CUDA, torch.bfloat16) is None
    assert version3 == ["activated", "removed"]


@REPLACES_FLASH
def test_a_version_that_is_not_there_leaves_the_active_one(version3):
    """torch takes the active version out before it finds the other one missing."""
    q, k, v = make_inputs(9, 9, dtype=torch.float32)
    BACKENDS["flash3"](q, k, v)
    assert "torch cannot activate FA4" in missing_reason("flash4", CUDA, torch.bfloat16)
    assert torch.nn.attention.current_flash_attention_impl() == "FA3"
    BACKENDS["flash3"](q, k, v)
    assert version3 == ["activated", "removed", "activated"]


@pytest.mark.parametrize(
    ("name", "capability", "words"),
    [
        ("flash3", (8, 0), "FA3 needs compute capability 9.x, and this GPU has 8.0"),
        ("flash3", (10, 0), "FA3 needs compute capability 9.x, and this GPU has 10.0"),
        ("flash4", (8, 0), "FA4 needs compute capability 9.x or 10.x"),
        pytest.param(
            "flash3", (9, 0), "torch cannot activate FA3 (ModuleNotFoundError", marks=REPLACES_FLASH
        ),
        pytest.param(
            "flash4",
            (10, 0),
            "'flash_attn.cute.interface' of https://github.com/Dao-AILab",
            marks=REPLACES_FLASH,
        ),
    ],
)
def test_a_version_that_is_not_there_says_why(monkeypatch, name, capability, words):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert words in missing_reason(name, CUDA, torch.bfloat16)
    assert torch.nn.attention.current_flash_attention_impl() is None


def test_a_version_needs_a_gpu_and_16_bits():
    assert "CUDA devices only" in missing_reason("flash3", torch.device("cpu"), torch.bfloat16)
    assert "not float32" in missing_reason("flash4", CUDA, torch.float32)
