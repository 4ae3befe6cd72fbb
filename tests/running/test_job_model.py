"""The model of a job: how a worker builds it, stores its weights and checks it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from retbench.architectures.matching import resolve_model
from retbench.architectures.retnet import RetNetSpec
from retbench.models.build import build_model
from retbench.planning.plan import Plan
from retbench.running import job_model
from tests.measure.outcomes import ROW_OUTCOMES


def test_a_vocabulary_smaller_than_a_byte_is_checked_too() -> None:
    """Models of synthetic tasks have few tokens; the check reads text of bytes."""
    entry = RetNetSpec(architecture="retnet")
    config = resolve_model(entry, "25k", vocab_size=32)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend=entry.backend)
    cell = SimpleNamespace(point=SimpleNamespace(context_len=64), model_name="retnet")
    assert job_model.check_gate(SimpleNamespace(cells=[cell]), model).passed  # type: ignore[arg-type]


def test_a_worker_builds_with_the_decode_operators_of_the_settings(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    model = SimpleNamespace(
        dtype=torch.float32, set_row_products=lambda products: None, store_weights=lambda *, by_output: None
    )
    monkeypatch.setattr(job_model, "build_model", lambda config, **options: asked.append(options) or model)
    (cell, *_) = plan_of("size=300k", "decode_operators=eager").cells
    job_model.build(SimpleNamespace(cells=(cell,)), torch.device("cpu"))
    assert asked[0]["decode_operators"] == "eager"


@pytest.mark.parametrize("by_output", [True, False])
def test_on_a_gpu_a_worker_stores_weights_as_was_found(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, by_output: bool
) -> None:
    """The model stays on the CPU, where nothing is measured: the first worker of the run has reported what it found."""
    cell = plan_of("size=300k").cells[0]
    build = job_model._build_as_stored
    monkeypatch.setattr(job_model, "_build_as_stored", lambda job, device: build(job, torch.device("cpu")))
    monkeypatch.setattr(job_model.products, "_found", {"by_output, cuda, float32": by_output})
    job = SimpleNamespace(cells=(cell,))
    model = job_model.build(job, torch.device("cuda:0"))  # type: ignore[arg-type]
    assert model.weight_layout == ("out,in" if by_output else "in,out")


@pytest.mark.parametrize(
    ("compiled", "found"),
    [("true", {"packed_rows, float32": 4, "by_output, float32": 1}), ("false", {})],
)
def test_a_worker_of_compiled_steps_finds_out_how_they_multiply_before_it_builds_the_model(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, compiled: str, found: dict[str, int]
) -> None:
    build, known = job_model._build_as_stored, []
    rows = dict.fromkeys(ROW_OUTCOMES, 0)
    monkeypatch.setattr(job_model.products, "_found", dict(rows))
    monkeypatch.setattr(job_model.products, "measure_packing", lambda dtype, onednn_rows: 4)
    monkeypatch.setattr(job_model.products, "measure_loops", lambda dtype, rows, products: True)
    monkeypatch.setattr(
        job_model, "_build_as_stored", lambda *args: known.append(job_model.products.found()) or build(*args)
    )
    cells = plan_of("size=300k", f"compile={compiled}").cells
    job_model.build(SimpleNamespace(cells=cells), torch.device("cpu"))  # type: ignore[arg-type]
    assert known == [rows | found]


def test_decode_steps_attend_by_products_where_they_are_compiled(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict.fromkeys(ROW_OUTCOMES, 0) | {"packed_rows, float32": 0, "by_output, float32": 0}
    monkeypatch.setattr(job_model.products, "_found", found)
    cells = {
        compiled: next(cell for cell in plan_of("size=300k", f"compile={compiled}").cells if cell.model.grows)
        for compiled in ("true", "false")
    }
    device, tokens = torch.device("cpu"), torch.tensor([[1, 2, 3]])
    model = job_model.build(SimpleNamespace(cells=[*cells.values()]), device)  # type: ignore[arg-type]
    for compiled, kernel in (("true", "products"), ("false", "sdpa:flash"), ("true", "products")):
        job_model.set_products(model, device, cells[compiled])
        model.set_backend(model.backend)
        with torch.inference_mode():
            state = model.init_state(1, 4)
            model(tokens, state)
            model(tokens[:, :1], state)
        assert model.executed_backends()["decode"] == kernel
