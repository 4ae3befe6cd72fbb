"""The choice between two products with one row: made by a measurement, once, and the same for near equals."""

import pytest
import torch

from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.measure import products
from retbench.models import build
from retbench.ops.linear import Linear, stream


@pytest.mark.parametrize(("streamed_s", "usual_s", "streams"), [(0.5, 1.0, True), (0.95, 1.0, False)])
def test_streaming_must_be_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, streamed_s: float, usual_s: float, streams: bool
) -> None:
    monkeypatch.setattr(products, "_seconds_of_both", lambda *shape: (streamed_s, usual_s))
    assert products.measure_streaming() is streams


def test_both_products_are_timed_here() -> None:
    assert all(seconds > 0 for shape in products._SHAPES for seconds in products._seconds_of_both(*shape))


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (7, 3), (64, 8192), (63, 8192), (1, 1)])
def test_a_streamed_product_is_the_product(inputs: int, outputs: int) -> None:
    x, table = torch.randn(inputs), torch.randn(inputs, outputs)
    with torch.inference_mode():
        torch.testing.assert_close(stream(x, table), x @ table, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("streams", [False, True])
def test_a_model_multiplies_single_rows_as_was_found(monkeypatch: pytest.MonkeyPatch, streams: bool) -> None:
    monkeypatch.setattr(build, "streaming_is_faster", lambda: streams)
    spec = named_specs()["retnet"]
    config = resolve_model(spec, "1m")
    for dtype, chosen in ((torch.float32, streams), (torch.bfloat16, False)):
        model = build.build_model(config, dtype=dtype, device="cpu", seed=0, backend=spec.backend)
        assert {part.streams for part in model.modules() if isinstance(part, Linear)} == {chosen}
        assert model.weight_product == ("streamed" if chosen else "torch")
