"""Matrices of 16 bits on a CPU without products of them: what a model computes is the same, rounded once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.measure import products
from retbench.models.build import build_model
from retbench.models.equivalence import check_equivalence, relative_error
from retbench.ops import attention, precision
from retbench.ops.linear import Linear, multiply_thin
from retbench.ops.precision import matmul, widens

NARROW = [torch.bfloat16, torch.float16]
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Largest relative error of one rounding."""


@pytest.fixture
def no_narrow_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without products of 16 bits."""
    monkeypatch.setattr(precision, "NARROW_PRODUCTS", frozenset())


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_rounded_once(found: Tensor, exact: Tensor) -> None:
    """Each value is the exact one but for a rounding, and for that of sums in float32."""
    limit = 1.01 * ROUNDING[found.dtype] * exact.abs() + 1e-5
    assert ((found.double() - exact).abs() <= limit).all()


def test_what_onednn_multiplies_is_not_widened() -> None:
    assert set(NARROW) >= precision.NARROW_PRODUCTS
    for dtype in (torch.float32, torch.float64, torch.int64, *precision.NARROW_PRODUCTS):
        assert not widens(torch.ones(1, dtype=dtype))
    assert not widens(torch.ones(1, dtype=torch.bfloat16, device="meta"))


@pytest.mark.usefixtures("no_narrow_products")
@pytest.mark.parametrize("dtype", NARROW)
def test_widened_products_are_exact_but_for_one_rounding(dtype: torch.dtype) -> None:
    a, b = draw(3, 5, 40, dtype=dtype), draw(3, 40, 7, dtype=dtype)
    assert_rounded_once(matmul(a, b), a.double() @ b.double())
    assert_rounded_once(multiply_thin(a, b), a.double() @ b.double())
    added = draw(3, 5, 7, dtype=dtype)
    assert_rounded_once(multiply_thin(a, b, added), added.double() + a.double() @ b.double())


@pytest.mark.usefixtures("no_narrow_products")
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("by_output", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_a_projection_is_exact_but_for_one_rounding(rows: int, by_output: bool, dtype: torch.dtype) -> None:
    linear = Linear(64, 48)
    linear.weight.data.copy_(draw(48, 64))
    linear = linear.to(dtype)
    linear.store(by_output=by_output)
    x, weight = draw(rows, 1, 64, dtype=dtype), linear.weight.detach().double()
    exact = x.double() @ weight.T
    with torch.inference_mode():
        assert_rounded_once(linear(x), exact)
        assert_rounded_once(linear.part(x, 8, 24), exact[..., 8:24])


@pytest.mark.usefixtures("no_narrow_products")
@pytest.mark.parametrize("dtype", NARROW)
def test_a_projection_under_autocast_multiplies_what_autocast_rounds(dtype: torch.dtype) -> None:
    linear = Linear(64, 48)
    linear.weight.data.copy_(draw(48, 64))
    x = draw(9, 64).float().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = linear(x)
    assert out.dtype == dtype
    rounded, weight = x.detach().to(dtype).double(), linear.weight.detach().to(dtype).double()
    assert_rounded_once(out.detach(), rounded @ weight.T)
    gradient = draw(9, 48, dtype=dtype)
    out.backward(gradient)
    assert x.grad is not None
    assert relative_error(x.grad, gradient.double() @ weight) < 4 * ROUNDING[dtype]
    assert linear.weight.grad is not None
    assert relative_error(linear.weight.grad, gradient.double().T @ rounded) < 4 * ROUNDING[dtype]


@pytest.mark.usefixtures("no_narrow_products")
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("backend", ["reference", "sdpa", "products"])
@pytest.mark.parametrize(("length", "keys", "kv_heads"), [(1, 33, 4), (1, 33, 2), (7, 33, 2), (33, 33, 4)])
def test_attention_is_that_of_float64(
    length: int, keys: int, kv_heads: int, backend: str, dtype: torch.dtype
) -> None:
    q, k, v = draw(2, 4, length, 8, dtype=dtype), *(draw(2, kv_heads, keys, 8, dtype=dtype) for _ in "kv")
    exact = attention.attend_reference(q.double(), k.double(), v.double())
    found = attention.BACKENDS[backend](q, k, v)
    assert found.dtype == dtype
    assert relative_error(found, exact) < 8 * ROUNDING[dtype]


@pytest.mark.usefixtures("no_narrow_products")
@pytest.mark.parametrize("dtype", NARROW)
def test_attention_under_autocast_rounds_its_inputs(dtype: torch.dtype) -> None:
    q, k, v = (draw(1, 2, 9, 8).float().add_(shift).requires_grad_() for shift in (0, 0.1, 0.2))
    exact = attention.attend_reference(*(x.detach().double() for x in (q, k, v)))
    with torch.autocast("cpu", dtype=dtype):
        out = attention.attend_sdpa(q, k, v)
    assert out.dtype == dtype
    assert relative_error(out.detach(), exact) < 16 * ROUNDING[dtype]
    out.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in (q, k, v))


@pytest.mark.usefixtures("no_narrow_products")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("kv_heads", [pytest.param(4, marks=pytest.mark.slow), 2])
def test_a_compiled_step_reads_a_cache_as_it_is_by_one_code_for_every_length(kv_heads: int) -> None:
    q = draw(2, 4, 1, 8, dtype=torch.bfloat16)
    caches = [draw(2, kv_heads, 64, 8, dtype=torch.bfloat16) for _ in "kv"]
    attend = torch.compile(attention.attend_products, fullgraph=True, dynamic=True)

    def check(keys: int) -> None:
        k, v = (cache[:, :, :keys] for cache in caches)
        exact = attention.attend_reference(q.double(), k.double(), v.double())
        assert relative_error(attend(q, k, v), exact) < 8 * ROUNDING[torch.bfloat16]

    with torch.inference_mode(), torch.compiler.set_stance("default"):
        check(20)
        with torch.compiler.set_stance("fail_on_recompile"):
            for keys in (31, 63):  # a whole cache has other strides
                check(keys)
            with torch.profiler.profile() as profiler:
                check(40)
    names = {event.key for event in profiler.key_averages()}
    assert "retbench::attend_single" not in names


@pytest.mark.usefixtures("no_narrow_products")
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", ["retnet", "transformer", "mla", "sliding_window", "gla", "rwkv6"])
def test_the_forms_of_a_model_are_equivalent(name: str, dtype: torch.dtype) -> None:
    spec = named_specs()[name]
    config = resolve_model(spec, "300k")
    model = build_model(config, dtype=dtype, device="cpu", seed=0, backend=spec.backend)
    tokens = torch.randint(0, 256, (1, 200), generator=torch.Generator().manual_seed(0))
    gate = check_equivalence(model, tokens, depth=200, lengths=(1, 17, 130))
    assert gate.passed, [check for check in gate.checks if not check.passed]


@pytest.mark.usefixtures("no_narrow_products")
@pytest.mark.parametrize("dtype", NARROW)
def test_no_trial_is_needed_for_widened_products(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Callable[[], int]:
        raise AssertionError("a trial")

    for trial in ("measure_rows", "measure_attention", "measure_loops", "measure_packing"):
        monkeypatch.setattr(products, trial, fail)
    monkeypatch.setattr(products, "_found", {})
    cpu = torch.device("cpu")
    assert products.row_products(cpu, dtype).description == "torch"
    assert all(
        products.storing_by_output_is_faster(cpu, dtype, compiled=compiled, rows=rows)
        for compiled in (True, False)
        for rows in (1, 8, 64)
    )
