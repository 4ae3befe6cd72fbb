"""Products with matrices of a low rank."""

import pytest
import torch

from retbench.ops.linear import SMALL_PRODUCT, multiply_thin


@pytest.mark.parametrize(
    ("rows", "matrices"),
    [((3,), ()), ((8,), (5,)), ((2, 1), ()), ((SMALL_PRODUCT // (33 * 70) + 1,), ())],
    ids=["small", "several matrices", "decode", "large"],
)
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
