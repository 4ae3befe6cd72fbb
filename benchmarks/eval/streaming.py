"""Bar on long documents: a novel streamed through RetNet has the same losses as in one pass, in constant memory."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.peers.outcomes import FP32_LIMIT, Limit, Outcome, error_outcome
from retbench.architectures.matching import resolve_model
from retbench.architectures.retnet import RetNetSpec
from retbench.data.corpora import load_corpus
from retbench.data.tokenizers import load_tokenizer
from retbench.errors import UnsupportedError
from retbench.evaluation.perplexity import streamed_losses
from retbench.measure.memory import measure_memory
from retbench.models.build import build_model

NOVEL_TOKENS = 100_000
DOCUMENT_TOKENS = 4096
MEMORY_LIMIT = 1.2


@torch.inference_mode()
def novel() -> Iterator[Outcome]:
    """Compare losses of a novel's beginning, streamed and parallel; then the memory of the novel and of a document.

    The model is RetNet of size 25m with random weights, the novel LitBank's first of `NOVEL_TOKENS` bytes or more.
    """
    tokenizer = load_tokenizer("bytes")
    texts = (tokenizer.encode(document.text) for document in load_corpus("litbank/original").documents("all"))
    tokens = next((tokens for tokens in texts if len(tokens) >= NOVEL_TOKENS), None)
    if tokens is None:
        raise UnsupportedError(
            f"litbank/original has no document of {NOVEL_TOKENS:,} bytes. Restore the folder."
        )
    text = torch.tensor([tokens[:NOVEL_TOKENS]])
    spec = RetNetSpec(architecture="retnet")
    model = build_model(
        resolve_model(spec, "25m"), dtype=torch.float32, device="cpu", seed=0, backend="chunkwise"
    )
    streamed = streamed_losses(model, text)[:, : DOCUMENT_TOKENS - 1]
    model.set_backend("parallel")
    whole = streamed_losses(model, text[:, :DOCUMENT_TOKENS], segment_len=DOCUMENT_TOKENS)
    yield error_outcome("novel: equality, losses streamed and parallel", streamed, whole, FP32_LIMIT)
    model.set_backend("chunkwise")
    long, short = (
        measure_memory(partial(streamed_losses, model, text[:, :end]), model.device).workspace_bytes
        for end in (NOVEL_TOKENS, DOCUMENT_TOKENS)
    )
    ratio = long / short
    note = f"bytes over the weights, {NOVEL_TOKENS:,} tokens by {DOCUMENT_TOKENS:,}"
    yield Outcome("novel: memory", long, short, ratio, ratio, ratio, Limit(high=MEMORY_LIMIT), note)
