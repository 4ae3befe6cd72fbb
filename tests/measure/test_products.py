"""The choice between products of few rows: made by a measurement, once, and the same for near equals."""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.errors import UnsupportedError
from retbench.measure import product_trials, products
from retbench.models import build
from retbench.ops.linear import (
    ALWAYS,
    FewestKeys,
    Linear,
    RowProducts,
    multiply_in_batches,
    stored_weight,
    stream,
)
from tests.measure.outcomes import ROW_OUTCOMES


class MadeUpSeconds:
    """In place of `_least_seconds`: runs each call once, and returns seconds that are made up.

    Attributes:
        shapes: Inputs and outputs of the weights of each call with one row.
    """

    def __init__(self, one_row_s: Sequence[float], gains: Collection[int] = (), share: float = 0.8) -> None:
        """Take the seconds of torch's product, both streams and batches, and the rows at which oneDNN takes a share."""
        self.one_row_s = list(one_row_s)
        self.gains = gains
        self.share = share
        self.shapes: list[set[tuple[int, int]]] = []

    def __call__(self, *calls: partial[None]) -> list[float]:
        for call in calls:
            call()
        if calls[0].args[1] == 1:
            self.shapes = [{(one.shape[1], one.shape[0]) for one in call.args[2]} for call in calls]
            return self.one_row_s
        shares = {product_trials.multiply_onednn: (0.98, self.share), F.linear: (1.0, 1.0)}
        return [call.args[1] * shares[call.args[0]][call.args[1] in self.gains] for call in calls]


@pytest.mark.parametrize(
    ("sliced_s", "partly_s", "batched_s", "width", "batches"),
    [
        (0.5, 0.6, 0.49, 1, False),
        (0.5, 0.6, 0.4, 1, True),
        (0.6, 0.5, 1.2, 4096, False),
        (0.95, 0.92, 0.91, 0, True),
        (0.95, 0.92, 0.98, 0, False),
        (1.2, 0.8, 0.7, 4096, True),
    ],
)
def test_streams_must_be_clearly_faster_and_batches_beat_the_better_of_them_and_torchs_product(
    monkeypatch: pytest.MonkeyPatch,
    sliced_s: float,
    partly_s: float,
    batched_s: float,
    width: int,
    batches: bool,
) -> None:
    seconds = MadeUpSeconds([1.0, sliced_s, partly_s, batched_s])
    monkeypatch.setattr(product_trials, "_least_seconds", seconds)
    assert product_trials.measure_rows() == {"slice_width": width, "batches": batches, "onednn_rows": 0}
    assert seconds.shapes == [set(product_trials._SHAPES)] * 4


@pytest.mark.parametrize("slice_width", [1, 4096])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (7, 3), (64, 8192), (63, 8192), (1, 1)])
def test_a_streamed_product_is_the_product(inputs: int, outputs: int, slice_width: int) -> None:
    x, table = torch.randn(inputs), torch.randn(inputs, outputs)
    with torch.inference_mode():
        torch.testing.assert_close(stream(x, table, slice_width), x @ table, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (7, 3), (64, 8192), (63, 8195), (1, 1)])
def test_a_product_in_batches_is_the_product(inputs: int, outputs: int) -> None:
    x, weight = torch.randn(inputs), torch.randn(outputs, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(multiply_in_batches(x, weight), weight @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("gains", "most"), [(set(), 0), ({2}, 0), ({4}, 4), ({2, 4, 64}, 64), ({64}, 0)])
def test_onednn_multiplies_up_to_as_many_rows_as_gain(
    monkeypatch: pytest.MonkeyPatch, gains: set[int], most: int
) -> None:
    monkeypatch.setattr(product_trials, "_least_seconds", MadeUpSeconds([1.0] * 4, gains))
    assert product_trials.measure_rows()["onednn_rows"] == most


@pytest.mark.parametrize(
    ("gains", "is_onednn"), [(set(), False), ({64}, False), ({512}, True), ({128, 512}, True)]
)
def test_onednn_multiplies_prompts_where_it_gains(
    monkeypatch: pytest.MonkeyPatch, gains: set[int], is_onednn: bool
) -> None:
    monkeypatch.setattr(product_trials, "_least_seconds", MadeUpSeconds([1.0] * 4, gains))
    assert product_trials.measure_prompts() is is_onednn


def test_a_small_gain_is_enough_for_prompts_and_not_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        product_trials, "_least_seconds", MadeUpSeconds([1.0] * 4, {2, 4, 64, 128, 512}, 0.93)
    )
    assert product_trials.measure_prompts()
    assert product_trials.measure_rows()["onednn_rows"] == 0


@pytest.mark.parametrize(
    ("ratios", "fewest"),
    [
        ((0.7, 0.9, 0.96), 1024),
        ((0.7, 0.9, 1.1), 4096),
        ((0.7, 1.1, 1.0), 16384),
        ((1.1, 1.1, 0.96), 0),
        ((0.98, 0.5, 0.5), 1024),  # disturbed at the most keys
        ((0.7, 1.1, 0.5), 1024),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "key_heads"), [(torch.float64, 8), (torch.bfloat16, 8), (torch.float32, 2)]
)
def test_attention_by_products_must_beat_torchs_own_over_all_keys_from_the_fewest_on(
    monkeypatch: pytest.MonkeyPatch,
    ratios: tuple[float, ...],
    fewest: int,
    dtype: torch.dtype,
    key_heads: int,
) -> None:
    remaining = iter(ratios)

    def seconds(*calls: Callable[[], object]) -> list[float]:
        for call in calls:
            call()
        return [next(remaining), 1.0]

    monkeypatch.setattr(product_trials, "_least_seconds", seconds)
    assert product_trials.measure_attention(dtype, key_heads=key_heads) == fewest


def test_without_onednn_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert product_trials.measure_rows()["onednn_rows"] == 0
    assert product_trials.measure_prompts() is False


@pytest.mark.usefixtures("narrow_products")
def test_other_products_than_torchs_are_for_a_cpu_and_with_weights_for_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = dict(zip(ROW_OUTCOMES, (1024, 2048, 4096, 1, 8, 1), strict=True))
    found |= {"attention_from, bfloat16": 4096, "attention_from, shared, bfloat16": 0}
    monkeypatch.setattr(products, "_found", found)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert products.row_products(cpu, torch.float32) == RowProducts(
        FewestKeys(1024, 2048), True, 4096, 8, True
    )
    assert products.row_products(cpu, torch.bfloat16) == RowProducts(attention_from=FewestKeys(4096))
    found |= {"packed_rows, float32": 4, "packed_rows, bfloat16": 0}
    for dtype, packed_from in ((torch.float32, 4), (torch.bfloat16, None)):
        assert products.row_products(cpu, dtype).packed_from is None
        assert products.row_products(cpu, dtype, compiled=True).packed_from == packed_from
    assert products.row_products(gpu, torch.float32) == RowProducts()
    monkeypatch.setattr(products, "_found", dict.fromkeys(ROW_OUTCOMES, 0))
    assert products.row_products(cpu, torch.float32) == RowProducts()


def test_a_model_multiplies_few_rows_as_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = RowProducts(slice_width=2048, onednn_rows=8)
    monkeypatch.setattr(build, "row_products", lambda *_: found)
    spec = named_specs()["retnet"]
    config = resolve_model(spec, "1m")
    model = build.build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=spec.backend)
    assert {part.row_products for part in model.modules() if isinstance(part, Linear)} == {found}
    assert model.weight_product == "1 row: streamed; 2 to 8 rows: onednn"


@pytest.mark.parametrize(("by_output_s", "by_input_s", "by_output"), [(0.9, 1.0, True), (0.98, 1.0, False)])
def test_weights_are_stored_by_output_where_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, by_output_s: float, by_input_s: float, by_output: bool
) -> None:
    asked = []

    def seconds(shape: tuple[int, int], rows: int, *, by_output: bool, **rest: object) -> float:
        asked.append((rows, rest["dtype"]))
        return by_output_s if by_output else by_input_s

    monkeypatch.setattr(product_trials, "product_seconds", seconds)
    assert product_trials.measure_layouts(torch.device("cpu"), torch.bfloat16) is by_output
    assert set(asked) == {(1, torch.bfloat16)}


def test_copies_of_a_weight_exceed_the_cache_and_lie_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[torch.Tensor]] = []
    multiply = product_trials.multiply_all
    monkeypatch.setattr(product_trials, "_cache_bytes", lambda device: 10_000)
    monkeypatch.setattr(product_trials, "_LAYOUT_WARMUP_S", 0.0)
    monkeypatch.setattr(
        product_trials, "multiply_all", lambda x, weights: (seen.append(weights), multiply(x, weights))
    )
    made = {"device": torch.device("cpu"), "dtype": torch.float32, "num_steps": 2}
    for by_output in (True, False):
        assert product_trials.product_seconds((48, 32), 2, by_output=by_output, **made) > 0
        weights = seen[-1]
        assert {weight.shape for weight in weights} == {(32, 48)}
        assert all(weight.is_contiguous() is by_output for weight in weights)
        assert len(weights) == math.ceil(4 * 10_000 / (48 * 32 * 4))
        assert len({weight.data_ptr() for weight in weights}) == len(weights)


def test_what_was_found_once_holds_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_found", {})
    monkeypatch.setattr(products, "measure_layouts", lambda device, dtype: True)
    device = torch.device("cuda:0")
    assert products.found() == {}
    assert products.storing_by_output_is_faster(device, torch.bfloat16, compiled=False) is True
    monkeypatch.setattr(products, "measure_layouts", lambda device, dtype: False)
    assert products.storing_by_output_is_faster(device, torch.bfloat16, compiled=True) is True
    assert products.found() == {"by_output, cuda, bfloat16": True}
    products.agree({"by_output, cuda, bfloat16": False})
    assert products.storing_by_output_is_faster(device, torch.bfloat16, compiled=True) is False


def test_on_a_gpu_the_layout_of_one_dtype_says_nothing_about_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_found", {})
    monkeypatch.setattr(products, "measure_layouts", lambda device, dtype: dtype == torch.float32)
    device = torch.device("cuda:0")
    assert products.storing_by_output_is_faster(device, torch.float32, compiled=False) is True
    assert products.storing_by_output_is_faster(device, torch.bfloat16, compiled=False) is False


@pytest.mark.usefixtures("narrow_products")
@pytest.mark.parametrize(("looped_s", "usual_s", "by_output"), [(0.5, 1.0, True), (0.95, 1.0, False)])
def test_on_a_cpu_weights_are_stored_by_output_for_loops_that_are_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, looped_s: float, usual_s: float, by_output: bool
) -> None:
    rows = dict.fromkeys((*ROW_OUTCOMES, "packed_rows, float32"), 0)
    monkeypatch.setattr(products, "_found", rows)
    made: list[tuple[RowProducts, bool]] = []

    def make(dtype: torch.dtype, rows: int, products: RowProducts, *, by_output: bool) -> None:
        made.append((products, by_output))

    monkeypatch.setattr(product_trials, "_compiled_products", make)
    monkeypatch.setattr(product_trials, "_least_seconds", lambda *calls: (looped_s, usual_s))
    cpu = torch.device("cpu")
    assert not products.storing_by_output_is_faster(cpu, torch.float32, compiled=False)
    assert products.storing_by_output_is_faster(cpu, torch.float32, compiled=True) is by_output
    assert products.found()["by_output, float32"] == by_output
    assert made == [(RowProducts(ALWAYS), True), (RowProducts(ALWAYS), False)]
    # Each number of rows has its own trial, up to the most that are looped; more are not tried.
    assert not products.storing_by_output_is_faster(cpu, torch.float32, compiled=False, rows=4)
    assert products.storing_by_output_is_faster(cpu, torch.float32, compiled=True, rows=4) is by_output
    assert products.found()["by_output, float32, 4 rows"] == by_output
    assert not products.storing_by_output_is_faster(cpu, torch.float32, compiled=True, rows=9)
    assert not products.storing_by_output_is_faster(cpu, torch.bfloat16, compiled=True, rows=2)
    assert len(made) == 4


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_loops_and_the_products_that_they_replace_are_timed_here(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(product_trials, "_READ_BYTES", 2**14)
    monkeypatch.setattr(product_trials, "_LOOP_WIDTH", 32)
    calls: list[Callable[[], torch.Tensor]] = []
    least = product_trials._least_seconds
    monkeypatch.setattr(product_trials, "_least_seconds", lambda *given: calls.extend(given) or least(*given))
    product_trials.measure_loops(torch.float32, rows, RowProducts(onednn_rows=8, packed_from=2))
    assert len(calls) == 2
    with torch.inference_mode():
        for call in calls:
            torch.testing.assert_close(call(), torch.ones(rows, 32))


def test_a_machine_that_cannot_compile_stores_no_weights_for_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise UnsupportedError("no compiler")

    monkeypatch.setattr(product_trials, "compile_step", refuse)
    monkeypatch.setattr(product_trials, "_READ_BYTES", 2**14)
    monkeypatch.setattr(product_trials, "_LOOP_WIDTH", 32)
    assert product_trials.measure_loops(torch.float32, 1, RowProducts()) is False


@pytest.mark.parametrize(
    ("ratios", "packing"),
    [
        ({1: 1.1, 2: 1.2, 4: 0.95, 8: 0.8}, {1: False, 4: False, 8: True, 64: True}),
        ({1: 0.6, 2: 0.6, 4: 0.6, 8: 0.6}, {1: True, 64: True}),
        ({1: 0.6, 2: 0.6, 4: 0.6, 8: 0.95}, {1: False, 64: False}),
    ],
)
def test_weights_are_packed_from_the_rows_on_at_which_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, ratios: dict[int, float], packing: dict[int, bool]
) -> None:
    monkeypatch.setattr(products, "_found", dict.fromkeys(ROW_OUTCOMES, 0))
    monkeypatch.setattr(product_trials, "_seconds_of_packed", lambda rows, *rest: (ratios[rows], 1.0))
    assert {rows: products.packing_is_faster(rows, torch.float32) for rows in packing} == packing
    monkeypatch.setattr(product_trials, "_seconds_of_packed", lambda rows, *rest: (1.0, 1.0))
    assert {rows: products.packing_is_faster(rows, torch.float32) for rows in packing} == packing
    assert not products.packing_is_faster(64, torch.bfloat16)


@pytest.mark.parametrize(
    ("onednn_rows", "rivals"), [(0, ["torch"] * 4), (4, ["torch", "onednn", "onednn", "torch"])]
)
def test_packed_weights_must_beat_the_product_that_compiled_code_has_else(
    monkeypatch: pytest.MonkeyPatch, onednn_rows: int, rivals: list[str]
) -> None:
    seen: dict[int, str] = {}

    def seconds(rows: int, dtype: torch.dtype, shape: tuple[int, int], usual: object) -> tuple[float, float]:
        seen[rows] = "onednn" if usual is product_trials.multiply_onednn else "torch"
        return 0.5, 1.0

    monkeypatch.setattr(product_trials, "_seconds_of_packed", seconds)
    assert product_trials.measure_packing(torch.float32, onednn_rows) == 1
    assert [seen[rows] for rows in (1, 2, 4, 8)] == rivals


def test_weights_that_compiled_code_does_not_pack_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert all(product_trials.measure_packing(dtype, 0) == 0 for dtype in (torch.float32, torch.bfloat16))
    assert product_trials._packed_product(torch.ones(4, 4, dtype=torch.float64), 1) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_packed_product_is_the_product_and_is_timed_here(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    weight, x = stored_weight(torch.randn(40, 24).to(dtype), by_output=False), torch.randn(3, 24).to(dtype)
    product = product_trials._packed_product(weight, 3)
    if product is None:
        pytest.skip(f"torch does not pack weights in {dtype} here")
    torch.testing.assert_close(product(x), F.linear(x, weight))
    monkeypatch.setattr(product_trials, "_READ_BYTES", 2**20)
    seconds = product_trials._seconds_of_packed(3, dtype, (24, 40), F.linear)
    assert seconds is not None
    assert min(seconds) > 0


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
