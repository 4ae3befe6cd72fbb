"""The data folder, small models of both architectures, and a trained one."""

import os
from pathlib import Path

import pytest
import torch

from retbench.checkpoints.loading import load_checkpoint
from retbench.data.tokenizers import load_tokenizer
from retbench.evaluation.lm import DecoderLM
from retbench.models.build import build_model
from tests.models.cases import backends_of, config_of


def small_model(case, seed=0, chunk_size=16, dtype=torch.float32):
    """A model whose logits differ enough to rank tokens."""
    model = build_model(
        config_of(case),
        dtype=dtype,
        device="cpu",
        seed=seed,
        backend=backends_of(case)[1],
        chunk_size=chunk_size,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(
                    torch.randn(weight.shape, generator=generator, dtype=dtype),
                    alpha=weight.shape[-1] ** -0.5,
                )
    return model


@pytest.fixture(scope="session")
def data_dir():
    folder = os.environ.get("RETBENCH_DATA")
    if not folder:
        pytest.skip("RETBENCH_DATA is not set: the folder of task files")
    return Path(folder)


@pytest.fixture(autouse=True)
def _no_data_by_accident(monkeypatch):
    """Tests name the folder they mean; and none asks the hub."""
    monkeypatch.delenv("RETBENCH_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", params=["fla", "llama"])
def byte_lm(request):
    """A small model of random weights that reads bytes."""
    return DecoderLM(small_model(request.param), load_tokenizer("bytes"), max_length=512)


@pytest.fixture(scope="session")
def stories(data_dir):
    """A trained model."""
    return load_checkpoint(str(data_dir / "stories260K"), dtype=torch.float32, device="cpu", backend="sdpa")


@pytest.fixture(scope="session")
def stories_tokenizer(data_dir):
    return load_tokenizer(str(data_dir / "stories260K" / "tok512.bin"))
