"""Training steps in this process: time and memory are those of a whole step, and nothing of it is left behind."""

from collections.abc import Callable

import pytest
import torch

from retbench.data import text
from retbench.measure import ceilings
from retbench.models.build import build_model
from retbench.planning.cells import Cell
from retbench.workloads import training
from retbench.workloads.context import Context
from retbench.workloads.metrics import training_bytes
from retbench.workloads.prefill import measure as measure_prefill
from retbench.workloads.training import training_step

from .conftest import make_cell, with_backend

Make = Callable[[Cell], Context]
FORMS = [
    ("retnet", "chunkwise"),
    ("retnet", "parallel"),
    ("transformer", "sdpa"),
    ("transformer", "reference"),
]
PARTS = ("weight_bytes", "gradient_bytes", "optimizer_bytes", "workspace_bytes")


@pytest.fixture(autouse=True)
def _no_second_product_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the rate of products before a cell, because measuring it again takes longer than a small step."""
    monkeypatch.setattr(ceilings, "_best_product_rate", lambda device, dtype: 0.0)


def training_cell(
    name: str,
    backend: str,
    context_len: int,
    batch_size: int = 1,
    *,
    checkpointing: bool = False,
    size: str = "1m",
) -> Cell:
    cell = make_cell(name, "training", context_len, batch_size, size=size)
    settings = cell.settings.model_copy(update={"activation_checkpointing": checkpointing})
    return with_backend(cell.model_copy(update={"settings": settings}), backend)


def bytes_of(context_of: Make, cell: Cell) -> dict[str, float]:
    found = training.measure(context_of(cell)).metrics
    return {name: metric.value for name, metric in found.items() if name.endswith("_bytes")}


@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_a_step_is_a_gradient_of_every_weight_over_real_text(
    context_of: Make, name: str, backend: str
) -> None:
    context = context_of(training_cell(name, backend, 70, batch_size=2))
    seen: list[torch.Tensor] = []
    gradients: list[bool] = []
    forward = context.model.forward

    def spy(tokens: torch.Tensor, *rest: object, **options: bool) -> torch.Tensor:
        assert torch.is_grad_enabled()
        gradients.append(any(weight.grad is not None for weight in context.model.parameters()))
        seen.append(tokens)
        return forward(tokens)

    context.model.forward = spy  # type: ignore[method-assign]
    found = training.measure(context)
    assert not any(gradients)  # every step begins without those of the last
    assert all(torch.equal(tokens, text.read_rows(2, 71)[:, :-1]) for tokens in seen)
    timed = len(found.metrics["step_s"].samples)
    assert timed in (3, 4)  # min_steps is 4; a slow machine has time for three only
    assert len(seen) >= 3 + timed  # one to begin with, one for the memory, one to warm up
    assert found.backend["timed_calls"] == timed
    assert str(found.backend["training"]).split(":")[0] == backend
    assert found.backend["optimizer"] == "AdamW, fused, learning rate 0"
    assert found.backend["activation_checkpointing"] is False


def test_the_ceiling_of_products_is_the_better_of_before_and_after_the_steps(
    context_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "_best_product_rate", lambda device, dtype: 1e20)
    found = training.measure(context_of(make_cell("retnet", "training", 70)))
    assert found.ceilings is not None
    assert found.ceilings.matmul_flops_per_s == 1e20
    share = found.metrics["flops_per_step"].value / 1e20 / found.metrics["step_s"].value
    assert found.metrics["roofline_ratio"].value == pytest.approx(share)


@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_the_model_is_left_as_it_was(context_of: Make, name: str) -> None:
    context = context_of(make_cell(name, "training", 70))
    before = {path: weight.detach().clone() for path, weight in context.model.named_parameters()}
    training.measure(context)
    assert not context.model.training
    assert not context.model.activation_checkpointing
    for path, weight in context.model.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[path]), path
    assert measure_prefill(context).metrics["ttft_s"].value > 0  # another cell of the same worker


def test_a_step_that_fails_leaves_the_model_as_it_was(
    context_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(training_cell("retnet", "chunkwise", 70, checkpointing=True))

    def fail(*_: object) -> None:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr("retbench.workloads.context.measure_memory", fail)
    with pytest.raises(RuntimeError, match="not enough memory"):
        training.measure(context)
    assert not context.model.training
    assert not context.model.activation_checkpointing
    assert all(weight.grad is None for weight in context.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_another_learning_rate_the_step_learns(dtype: torch.dtype) -> None:
    """The optimiser, its layout of weights and the loss are right: repeated steps bring the loss of a text down."""
    cell = make_cell("retnet", "training", 64)
    model = build_model(
        cell.model, dtype=dtype, device="cpu", seed=0, backend="chunkwise", chunk_size=cell.chunk_size
    )
    rows = text.read_rows(1, 65)

    def loss() -> float:
        with torch.no_grad():
            logits = model(rows[:, :-1])
        return float(torch.nn.functional.cross_entropy(logits[0].float(), rows[0, 1:]))

    first = loss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for _ in range(8):
        training_step(model, optimizer, rows)
    assert loss() < first - 0.5


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no time of a step: its memory is measured all the same."""
    monkeypatch.setattr(Context, "time_calls", lambda *_: [1.0])


@pytest.mark.parametrize(("name", "backend"), FORMS)
@pytest.mark.usefixtures("untimed")
def test_parts_add_up_to_the_peak(context_of: Make, name: str, backend: str) -> None:
    cell = training_cell(name, backend, 300)
    found = bytes_of(context_of, cell)
    assert found["peak_bytes"] == sum(found[part] for part in PARTS)
    assert found["gradient_bytes"] == found["weight_bytes"]
    num_weights = len(list(context_of(cell).model.parameters()))
    assert found["optimizer_bytes"] == 2 * found["weight_bytes"] + 4 * num_weights  # and a step counter each
    assert found["workspace_bytes"] > 0
    assert found["peak_bytes"] / 1.5 < training_bytes(cell) < 1.5 * found["peak_bytes"]


@pytest.mark.usefixtures("untimed")
def test_chunks_and_a_fused_kernel_keep_bytes_a_token_and_the_others_a_square(context_of: Make) -> None:
    lengths = (256, 384, 640)  # twice as many tokens are added the second time
    growth = {}
    for name, backend in FORMS:
        short, middle, long = (
            bytes_of(context_of, training_cell(name, backend, length, size="300k"))["peak_bytes"]
            for length in lengths
        )
        growth[backend] = (long - middle) / (middle - short)
    assert growth["chunkwise"] == pytest.approx(2.0, rel=0.01)
    assert growth["sdpa"] == pytest.approx(2.0, rel=0.01)
    assert growth["parallel"] > 2.2
    assert growth["reference"] > 2.2


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("name", ["retnet", "transformer"])
def test_activation_checkpointing_takes_less_memory_and_says_so(context_of: Make, name: str) -> None:
    backend = "chunkwise" if name == "retnet" else "sdpa"
    plain = bytes_of(context_of, training_cell(name, backend, 512))
    cell = training_cell(name, backend, 512, checkpointing=True)
    recomputed = training.measure(context_of(cell))
    assert recomputed.backend["activation_checkpointing"] is True
    assert recomputed.metrics["workspace_bytes"].value < 0.5 * plain["workspace_bytes"]
    assert recomputed.metrics["gradient_bytes"].value == plain["gradient_bytes"]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_a_step_on_a_gpu_has_the_allocators_peaks(context_of: Make, name: str, backend: str) -> None:
    cell = training_cell(name, backend, 300)
    settings = cell.settings.model_copy(update={"device": "cuda:0", "dtype": "bfloat16"})
    made, device = context_of(cell.model_copy(update={"settings": settings})), torch.device("cuda:0")
    model = made.model.to(device, torch.bfloat16)
    found = training.measure(Context(made.cell, model, device, made.ceilings, made.states, made.compiler))
    value = {metric: found.metrics[metric].value for metric in found.metrics}
    assert value["peak_bytes"] == sum(value[part] for part in PARTS)
    assert value["peak_bytes"] <= value["device_peak_bytes"] <= value["reserved_peak_bytes"]
    assert found.absent.keys() <= {"roofline_ratio"}  # a GPU may exceed the ceilings, which are made up
