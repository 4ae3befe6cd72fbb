"""A tiny pair of models, and the context of a cell, for workloads that are run in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retbench.architectures.matching import resolve_model
from retbench.architectures.retnet import RetNetSpec
from retbench.architectures.transformer import TransformerSpec
from retbench.config.synthetic import LengthRecall, Mqar
from retbench.models.build import build_model
from retbench.models.compiled import StepCompiler
from retbench.planning.cells import Cell, ModelUnderTest, Settings, Weights, model_under_test
from retbench.records.record import Ceilings, Point, WeightsInfo
from retbench.workloads.context import Context
from retbench.workloads.states import StateStore

SPECS = {
    "retnet": RetNetSpec(architecture="retnet"),
    "transformer": TransformerSpec(architecture="transformer"),
    "concat": TransformerSpec(architecture="transformer", cache="concat"),
}
CEILINGS = Ceilings(read_bandwidth_bytes_per_s=10e9, matmul_flops_per_s=100e9)


def make_cell(
    name: str, workload: str, context_len: int, batch_size: int = 1, min_steps: int = 4, size: str = "1m"
) -> Cell:
    spec = SPECS[name]
    return Cell(
        under_test=model_under_test(name, spec, size, resolve_model(spec, size)),
        workload=workload,
        point=Point(batch_size=batch_size, context_len=context_len),
        settings=Settings(
            dtype="float32",
            device="cpu",
            threads=1,
            seed=3,
            warmup_s=0.0,
            min_steps=min_steps,
            cuda_graph=False,
        ),
    )


def trained_on(examples: Mqar | LengthRecall, name: str, **weights: Any) -> ModelUnderTest:
    """A small model with weights that say that they were trained on generated examples of 16 tokens."""
    task = examples.name
    info = WeightsInfo(source=f"{task}/cpu", fingerprint="f", format="retbench", seed=0, corpus=task)
    held: dict[str, Any] = {
        "path": Path("/nowhere"),
        "info": info,
        "corpus_fingerprint": examples.fingerprint,
        "context_len": 16,
    }
    config = resolve_model(SPECS[name], "25k", vocab_size=examples.vocab_size)
    return model_under_test(name, SPECS[name], "25k", config, Weights(**(held | weights)))


def with_backend(cell: Cell, backend: str) -> Cell:
    return cell.model_copy(update={"under_test": cell.under_test.model_copy(update={"backend": backend})})


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "states", "0.1.0+src.test")


@pytest.fixture
def context_of(store: StateStore) -> Callable[[Cell], Context]:
    def make(cell: Cell) -> Context:
        device = torch.device("cpu")
        model = build_model(
            cell.model,
            dtype=torch.float32,
            device=device,
            seed=cell.settings.seed,
            backend=cell.backend,
            chunk_size=cell.chunk_size,
        )
        return Context(cell, model, device, CEILINGS, store, StepCompiler(model))

    return make
