"""The choice between two products with one row: made by a measurement, once, and the same for near equals."""

import math

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


@pytest.mark.parametrize(("by_output_s", "by_input_s", "by_output"), [(0.9, 1.0, True), (0.98, 1.0, False)])
def test_weights_are_stored_by_output_where_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, by_output_s: float, by_input_s: float, by_output: bool
) -> None:
    asked = []

    def seconds(shape: tuple[int, int], rows: int, *, by_output: bool, **rest: object) -> float:
        asked.append((rows, rest["dtype"]))
        return by_output_s if by_output else by_input_s

    monkeypatch.setattr(products, "product_seconds", seconds)
    assert products.measure_layouts(torch.device("cpu"), torch.bfloat16) is by_output
    assert set(asked) == {(1, torch.bfloat16)}


def test_copies_of_a_weight_exceed_the_cache_and_lie_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[torch.Tensor]] = []
    multiply = products.multiply_all
    monkeypatch.setattr(products, "_cache_bytes", lambda device: 10_000)
    monkeypatch.setattr(products, "_LAYOUT_WARMUP_S", 0.0)
    monkeypatch.setattr(
        products, "multiply_all", lambda x, weights: (seen.append(weights), multiply(x, weights))
    )
    made = {"device": torch.device("cpu"), "dtype": torch.float32, "num_steps": 2}
    for by_output in (True, False):
        assert products.product_seconds((48, 32), 2, by_output=by_output, **made) > 0
        weights = seen[-1]
        assert {weight.shape for weight in weights} == {(32, 48)}
        assert all(weight.is_contiguous() is by_output for weight in weights)
        assert len(weights) == math.ceil(4 * 10_000 / (48 * 32 * 4))
        assert len({weight.data_ptr() for weight in weights}) == len(weights)


def test_what_was_found_once_holds_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_found", None)
    monkeypatch.setattr(products, "measure_layouts", lambda device, dtype: True)
    device = torch.device("cuda:0")
    assert products.found() is None
    assert products.storing_by_output_is_faster(device, torch.bfloat16) is True
    monkeypatch.setattr(products, "measure_layouts", lambda device, dtype: False)
    assert products.storing_by_output_is_faster(device, torch.bfloat16) is products.found() is True
    products.agree(False)
    assert products.storing_by_output_is_faster(device, torch.bfloat16) is False


@pytest.mark.parametrize("name", ["retnet", "transformer", "mla"])
@torch.no_grad()
def test_a_layout_changes_no_value(name: str) -> None:
    spec = named_specs()[name]
    config = resolve_model(spec, "1m")
    made = {"dtype": torch.float64, "device": "cpu", "seed": 0, "backend": spec.backend}
    model, tokens = build.build_model(config, **made), torch.arange(20).view(2, 10)
    assert model.weight_layout == "in,out"
    expected, weights = model(tokens), {key: value.clone() for key, value in model.state_dict().items()}
    for layout in ("out,in", "in,out"):
        model.store_weights(by_output=layout == "out,in")
        assert model.weight_layout == layout
        projections = [part.weight for part in model.modules() if isinstance(part, Linear)]
        assert {weight.is_contiguous() for weight in projections} == {layout == "out,in"}
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
        state = model.init_state(2, 10)
        model.prefill(tokens[:, :9], state)
        last = model(tokens[:, 9:], state)
        torch.testing.assert_close(torch.cat([model(tokens)[:, :9], last], dim=1), expected)
