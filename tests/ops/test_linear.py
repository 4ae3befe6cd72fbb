"""Products of one row, and with matrices of a low rank."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from retbench.measure.clock import time_call
from retbench.measure.compiled import compile_step
from retbench.models.equivalence import relative_error
from retbench.ops.linear import SMALL_PRODUCT, Linear, RowProducts, loop, multiply_thin


@pytest.mark.parametrize(
    ("rows", "matrices"),
    [((3,), ()), ((8,), (5,)), ((2, 1), ()), ((SMALL_PRODUCT // (33 * 70) + 1,), ())],
    ids=["small", "several matrices", "decode", "large"],
)
@pytest.mark.usefixtures("narrow_products")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_a_compiled_product_with_a_low_rank_is_the_product(
    rows: tuple[int, ...], matrices: tuple[int, ...], dtype: torch.dtype, limit: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*matrices, *rows, 33, generator=generator).to(dtype)
    weight = torch.randn(*matrices, 33, 70, generator=generator).to(dtype)
    torch.testing.assert_close(multiply_thin(x, weight), x @ weight, atol=0, rtol=0)
    # This backend traces the model as a compiler does, and runs torch's operators.
    compiled = torch.compile(multiply_thin, backend="eager", fullgraph=True)
    with torch.compiler.set_stance("default"):  # after a compiled step, a process compiles nothing anew
        torch.testing.assert_close(compiled(x, weight), x @ weight, atol=limit, rtol=limit)


@pytest.mark.parametrize(
    ("dtype", "rows", "limit"),
    [
        (torch.float32, 1, 1e-5),
        pytest.param(torch.float32, 3, 1e-5, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 1, 0.01, marks=pytest.mark.slow),
        (torch.bfloat16, 8, 0.01),
    ],
)
def test_few_compiled_rows_are_multiplied_in_a_loop_where_the_weight_is_stored_by_output(
    dtype: torch.dtype, rows: int, limit: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = Linear(64, 48).requires_grad_(False)
    linear.weight.normal_(generator=generator)
    linear, x = linear.to(dtype), torch.randn(rows, 1, 64, generator=generator).to(dtype)
    expected = linear(x)
    linear.store(by_output=True)
    with torch.inference_mode(), torch.compiler.set_stance("default"):
        compiled = torch.compile(linear, fullgraph=True, dynamic=False)
        assert compiled(x).shape == expected.shape
        assert relative_error(compiled(x), expected) < limit
        with torch.profiler.profile() as profiler:
            compiled(x)
    operators = {event.key for event in profiler.key_averages()}
    assert not any(part in name for name in operators for part in ("::mm", "::addmm", "linear_pointwise"))


@pytest.mark.slow
def test_what_a_compiled_product_multiplies_is_computed_once_and_not_for_each_output() -> None:
    width, calls = 4096, 20
    x, weight = torch.randn(1, width), torch.randn(width, width)

    def activate(x: torch.Tensor) -> torch.Tensor:
        for _ in range(8):
            x = F.gelu(x)
        return x

    seconds = []
    with torch.inference_mode():
        for step in (lambda x: loop(activate(x), weight), lambda x: loop(x, weight)):
            run = compile_step(step, x).run
            seconds.append(min(time_call(partial(run, x)) for _ in range(calls)))
    assert seconds[0] < 2 * seconds[1], "for each output it took many times as long"


@pytest.mark.parametrize(
    ("products", "description"),
    [
        (RowProducts(), "torch"),
        (RowProducts(slice_width=4096), "1 row: streamed"),
        (RowProducts(batches=True, slice_width=4096), "1 row: batched"),
        (RowProducts(onednn_rows=64), "2 to 64 rows: onednn"),
        (RowProducts(1024, slice_width=1, onednn_rows=64), "1 row: streamed; 2 to 64 rows: onednn"),
        (RowProducts(onednn_prompts=True), "more than 64 rows: onednn"),
    ],
)
def test_products_are_described(products: RowProducts, description: str) -> None:
    assert products.description == description


@pytest.mark.parametrize(
    ("by_output", "shape", "operator"),
    [
        (False, (1, 1, 64), "aten::bmm"),
        (False, (2, 1, 64), "mkldnn::_linear_pointwise"),
        (False, (8, 1, 64), "mkldnn::_linear_pointwise"),
        (False, (2, 4, 64), "mkldnn::_linear_pointwise"),
        (False, (9, 64), "aten::linear"),
        (False, (64, 64), "aten::linear"),
        (False, (65, 64), "mkldnn::_linear_pointwise"),
        (False, (0, 64), "aten::linear"),
        (True, (1, 1, 64), "aten::bmm"),
        (True, (2, 1, 64), "aten::linear"),
        (True, (64, 64), "aten::linear"),
        (True, (1, 65, 64), "mkldnn::_linear_pointwise"),
        (True, (0, 64), "aten::linear"),
    ],
)
def test_rows_are_multiplied_as_was_chosen(by_output: bool, shape: tuple[int, ...], operator: str) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = Linear(64, 48).requires_grad_(False)
    linear.weight.normal_(generator=generator)
    linear.store(by_output=by_output)
    x = torch.randn(shape, generator=generator)
    expected = linear(x)
    linear.row_products = RowProducts(batches=True, slice_width=1, onednn_rows=8, onednn_prompts=True)
    with torch.inference_mode(), torch.profiler.profile() as profiler:
        torch.testing.assert_close(linear(x), expected)
    found = {event.key for event in profiler.key_averages()}
    assert found & {"aten::bmm", "mkldnn::_linear_pointwise", "aten::linear"} == {operator}
    with torch.enable_grad():
        assert linear(x.requires_grad_()).requires_grad


def test_a_weight_that_is_stored_by_output_is_not_streamed() -> None:
    linear, x = Linear(8, 5), torch.randn(1, 1, 8)
    linear.row_products = RowProducts(slice_width=4)
    with torch.no_grad():
        linear.weight.normal_()
        expected = linear(x)
        linear.store(by_output=True)
        torch.testing.assert_close(linear(x), expected)
        assert torch.equal(linear(x), torch.nn.functional.linear(x, linear.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_product_does_not_copy_its_row(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = Linear(64, 48).requires_grad_(False)
    linear.weight.normal_(generator=generator)
    linear, x = linear.to(dtype), torch.randn(1, 1, 64, generator=generator).to(dtype)
    with torch.inference_mode(), torch.compiler.set_stance("default"):
        compiled = torch.compile(lambda x: linear(torch.nn.functional.silu(x)), fullgraph=True)
        found = compiled(x)
        with torch.profiler.profile() as profiler:
            compiled(x)
        torch.testing.assert_close(found, linear(torch.nn.functional.silu(x)), atol=1e-2, rtol=1e-2)
    operators = {event.key for event in profiler.key_averages()}
    assert "aten::mm" in operators or any("linear" in name for name in operators)
    assert not operators & {"aten::clone", "aten::copy_"}


@pytest.mark.parametrize(("device", "count"), [("cpu", 2), ("meta", 0)])
def test_only_on_a_cpu_is_the_row_of_a_compiled_product_kept_from_a_copy(device: str, count: int) -> None:
    negated: list[str] = []

    def note(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        negated.extend(node.name for node in module.graph.nodes if node.target == "neg")
        return module.forward

    linear, x = Linear(64, 48).to(device), torch.zeros(1, 1, 64, device=device)
    with torch.inference_mode(), torch.compiler.set_stance("default"):
        assert torch.compile(linear, backend=note, fullgraph=True)(x).shape == (1, 1, 48)
    assert len(negated) == count


@pytest.mark.parametrize("rows", [1, 2])
def test_a_compiled_loop_has_gradients(rows: int) -> None:
    layer, x = Linear(6, 4), torch.randn(rows, 6, requires_grad=True)
    torch.nn.init.normal_(layer.weight)
    layer.store(by_output=True)

    def gradients(compute: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(compute(x).square().sum(), (x, layer.weight))

    with torch.compiler.set_stance("default"):
        compiled = gradients(torch.compile(layer, backend="aot_eager", fullgraph=True))
    for found, expected in zip(compiled, gradients(layer), strict=True):
        torch.testing.assert_close(found, expected)
