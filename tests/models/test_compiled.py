"""Compiled decode steps: one compilation serves every depth, and what it computes is what the eager step computes."""

import pytest
import torch

from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.measure import products
from retbench.models.build import build_model
from retbench.models.compiled import StepCompiler
from retbench.models.decoder import Decoder
from retbench.models.equivalence import relative_error
from retbench.ops.linear import ALWAYS, RowProducts
from tests.measure.outcomes import ROW_OUTCOMES

# What inductor loads still uses torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def one_layer(name: str, dtype: torch.dtype = torch.float32) -> Decoder:
    """The named model with as few layers as it has kinds of them: compiling takes seconds for each."""
    spec = named_specs()[name]
    config = resolve_model(spec, "1m")
    blocks = tuple(block.model_copy(update={"count": 1}) for block in dict.fromkeys(config.blocks))
    config = config.model_copy(update={"blocks": blocks})
    return build_model(config, dtype=dtype, device="cpu", seed=0, backend=spec.backend)


@torch.inference_mode()
def errors_by_depth(
    model: Decoder, compiler: StepCompiler, depths: list[int], batch_size: int
) -> list[float]:
    """Distances of the compiled step's logits and state from the eager one's, and the compilation's seconds."""
    found = []
    for depth in depths:
        tokens = torch.arange(batch_size).view(-1, 1)
        state = model.init_state(batch_size, depth + 1)
        generator = torch.Generator().manual_seed(depth)
        for layer in state.layers:
            for tensor in layer.tensors.values():
                tensor.normal_(generator=generator)
        state.position = depth
        mark = state.mark()
        eager = model(tokens, state)
        left = state.snapshot().tensors()
        state.rewind(mark)
        step = compiler.prepare(tokens, state)
        assert state.position == depth + 1
        for name, tensor in state.tensors().items():
            assert relative_error(tensor, left[name]) <= 1e-4
        found.append(relative_error(step.logits, eager))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "retnet",
        "transformer",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("retnet-torchscale", "retnet-yoco", "hybrid", "yoco")
        ),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "linear",
                "linear-performer",
                "gla",
                "hybrid-based",
                "sliding_window",
                "retnet-paper",
                "mla",
                "mamba2",
                "rwkv6",
                "rwkv6-v5",
            )
        ),
    ],
)
def test_one_compilation_serves_every_depth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from retbench.models import compiled

    compilations = []
    compile_step = compiled.compile_step

    def count(*args: object, **options: bool) -> object:
        compilations.append(args)
        return compile_step(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(compiled, "compile_step", count)
    model = one_layer(name)
    model.set_row_products(RowProducts(ALWAYS))  # as compiled steps of a run attend
    assert max(errors_by_depth(model, StepCompiler(model), [100, 5, 5000, 2], batch_size=2)) < 1e-4
    # Whether a window is full, and whether a token is one of the first that a window always keeps, is code.
    assert len(compilations) == {"sliding_window": 3, "hybrid-based": 2}.get(name, 1)


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        ("retnet", 1),
        pytest.param("retnet", 3, marks=pytest.mark.slow),
        pytest.param("transformer", 1, marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_few_rows_are_multiplied_by_loops_over_weights_stored_by_output(name: str, batch_size: int) -> None:
    model = one_layer(name)
    assert model.compiled_product(batch_size) == "torch"
    model.store_weights(by_output=True)
    compiler = StepCompiler(model)
    assert max(errors_by_depth(model, compiler, [100, 5], batch_size)) < 1e-4
    state, token = model.init_state(batch_size, 10), torch.zeros(batch_size, 1, dtype=torch.int64)
    state.position = 7
    step = compiler.prepare(token, state)
    assert step.product == "loop"
    with torch.profiler.profile() as profiler:
        step.run(token, state)
    operators = {event.key for event in profiler.key_averages()}
    assert not operators & {"aten::mm", "aten::addmm", "aten::bmm", "aten::linear"}


@pytest.mark.parametrize(
    ("products", "rows", "product"),
    [
        (RowProducts(onednn_rows=64), 3, "onednn"),
        (RowProducts(onednn_rows=64), 1, "torch"),
        (RowProducts(onednn_rows=2), 3, "torch"),
        (RowProducts(onednn_rows=64, packed_from=3), 3, "torch"),
        (RowProducts(onednn_rows=64, packed_from=4), 3, "onednn"),
        (RowProducts(onednn_rows=64, onednn_prompts=True), 65, "onednn"),
        (RowProducts(onednn_rows=64), 65, "torch"),
        (RowProducts(onednn_prompts=True, packed_from=64), 65, "torch"),
    ],
)
def test_rows_of_compiled_steps_are_multiplied_as_was_chosen(
    products: RowProducts, rows: int, product: str
) -> None:
    model = one_layer("retnet")
    model.set_row_products(products)
    assert model.compiled_product(rows) == product
    model.store_weights(by_output=True)
    assert model.compiled_product(rows) == ("loop" if rows <= 8 else product)
    assert one_layer("retnet", torch.bfloat16).compiled_product(rows) == "torch"


@pytest.mark.slow
@torch.inference_mode()
def test_a_compiled_step_of_several_rows_may_multiply_by_onednn() -> None:
    model = one_layer("retnet")
    model.set_row_products(RowProducts(onednn_rows=64))
    compiler = StepCompiler(model)
    assert max(errors_by_depth(model, compiler, [100, 5], 3)) < 1e-4
    assert len(compiler._compiled) == 1
    state, token = model.init_state(3, 10), torch.zeros(3, 1, dtype=torch.int64)
    step = compiler.prepare(token, state)
    assert step.product == "onednn"
    with torch.profiler.profile() as profiler:
        step.run(token, state)
    operators = {event.key for event in profiler.key_averages()}
    assert "mkldnn::_linear_pointwise" in operators
    assert not operators & {"aten::mm", "aten::addmm", "aten::linear", "aten::clone"}


@pytest.mark.parametrize("sinks", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_the_step_of_a_full_window_serves_every_slot(sinks: int) -> None:
    spec = named_specs()["sliding_window"].model_copy(update={"sinks": sinks, "window": 64})
    config = resolve_model(spec, "1m")
    block = config.blocks[0].model_copy(update={"count": 1})
    config = config.model_copy(update={"blocks": (block,)})
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="blocks")
    compiler = StepCompiler(model)
    # The first of the slots that are written over again, the one before and the one after.
    assert max(errors_by_depth(model, compiler, [127 + sinks, 128 + sinks, 129 + sinks], 1)) < 1e-4
    assert len(compiler._compiled) == 1


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have weights packed from four rows on in float32, where oneDNN is faster else, and always in bfloat16."""
    found = dict.fromkeys(ROW_OUTCOMES, 0) | {"onednn_rows": 64, "onednn_prompts": 1}
    found |= {"attention_from, bfloat16": 0, "attention_from, shared, bfloat16": 0}
    monkeypatch.setattr(products, "_found", found | {"packed_rows, float32": 4, "packed_rows, bfloat16": 1})


@pytest.mark.parametrize(
    ("dtype", "batch_size", "product"),
    [
        (torch.float32, 1, "torch"),
        (torch.float32, 3, "onednn"),
        (torch.float32, 4, "packed"),
        (torch.float32, 65, "packed"),
        (torch.bfloat16, 1, "packed"),
    ],
)
@pytest.mark.usefixtures("packing")
def test_weights_are_packed_where_that_is_faster(dtype: torch.dtype, batch_size: int, product: str) -> None:
    model = one_layer("retnet", dtype)
    model.set_row_products(products.row_products(model.device, dtype, compiled=True))
    assert StepCompiler(model).product_of(batch_size) == product


@pytest.mark.slow
@pytest.mark.usefixtures("packing")
def test_another_batch_size_is_compiled_anew_and_packed_weights_give_the_same() -> None:
    model = one_layer("transformer")
    compiler = StepCompiler(model)
    for batch_size in (1, 4):
        assert max(errors_by_depth(model, compiler, [64, 128], batch_size)) < 1e-4


@pytest.mark.slow
@torch.inference_mode()
def test_models_whose_inputs_look_the_same_run_their_own_code():
    for name in ("rwkv6", "rwkv6-v5"):
        model = one_layer(name)
        (error,) = errors_by_depth(model, StepCompiler(model), [5], 1)
        assert error <= 1e-4
