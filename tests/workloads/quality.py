"""The cell and the context of a workload of quality, whose models read bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from retbench.architectures.matching import resolve_model
from retbench.data.tokenizers import load_tokenizer
from retbench.models.build import build_model
from retbench.models.compiled import StepCompiler
from retbench.planning.cells import Cell, Evaluation, Settings, model_under_test
from retbench.records.record import Point
from retbench.workloads.context import Context
from retbench.workloads.states import StateStore

from .conftest import CEILINGS, SPECS

BYTES = load_tokenizer("bytes")


def make_context(
    folder: Path, name: str, workload: str, point: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> Context:
    """A model of random weights that is to answer a point; without an evaluation where that is None.

    Args:
        folder: Where data is looked for.
        name: retnet or transformer.
        workload: perplexity or zeroshot.
        point: Fields of the point beside its batch size.
        evaluation: Fields beside the tokenizer; they may name another one.
    """
    spec = SPECS[name]
    config = resolve_model(spec, "300k", vocab_size=BYTES.vocab_size)
    tokenizer = {"tokenizer": "bytes", "tokenizer_fingerprint": BYTES.fingerprint}
    cell = Cell(
        under_test=model_under_test(name, spec, "300k", config),
        workload=workload,
        point=Point(batch_size=1, **point),
        settings=Settings(
            dtype="float32", device="cpu", threads=1, seed=3, warmup_s=0.0, min_steps=2, cuda_graph=False
        ),
        evaluation=None if evaluation is None else Evaluation(**(tokenizer | evaluation)),
    )
    model = build_model(
        config,
        dtype=torch.float32,
        device="cpu",
        seed=3,
        backend=cell.backend,
        chunk_size=cell.chunk_size,
    )
    store = StateStore(folder / "states", "0.1.0+src.test")
    return Context(cell, model, torch.device("cpu"), CEILINGS, store, StepCompiler(model), data_dir=folder)
