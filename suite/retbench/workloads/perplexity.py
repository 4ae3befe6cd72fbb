"""Perplexity of a corpus; see `evaluation.perplexity` for how it is scored."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from retbench.config.evaluation import PerplexitySpec
from retbench.errors import ConfigError
from retbench.planning.cells import Inputs, ModelUnderTest
from retbench.records.record import Metric, Series
from retbench.units import tokens_per_second
from retbench.workloads.workload import Measurement, MetricSpec, Workload

if TYPE_CHECKING:
    from retbench.evaluation.perplexity import CorpusLoss
    from retbench.workloads.context import Context

IN_TEXT = ("bits_per_byte", "word_perplexity", "num_bytes", "num_words")
"""Metrics that are defined only where the scored span of every document is known in characters."""


def find_inputs(spec: PerplexitySpec, models: Sequence[ModelUnderTest], data_dir: Path | None) -> Inputs:
    """Describe what the perplexity of each model on each corpus depends on; see `find_texts`."""
    from retbench.workloads.evaluation_inputs import find_texts

    texts = find_texts("perplexity", spec, models, data_dir)
    limit = {"max_document_tokens": spec.max_document_tokens}
    return {key: evaluation.model_copy(update=limit) for key, evaluation in texts.items()}


def measure(context: "Context") -> Measurement:
    """Score the cell's corpus by its protocol.

    Raises:
        ConfigError: the corpus is not the one that was planned, or nothing of it can be scored.
    """
    from retbench.evaluation.perplexity import PerplexitySetup, score_corpus
    from retbench.workloads.evaluation_inputs import corpus_of, evaluation_of, tokenizer_of

    cell, evaluation = context.cell, evaluation_of(context)
    tokenizer, corpus = tokenizer_of(context), corpus_of(context)
    assert cell.point.protocol is not None
    setup = PerplexitySetup(
        cell.point.protocol, cell.point.context_len, cell.point.stride, evaluation.max_document_tokens
    )
    split = evaluation.split or "test"
    documents = islice(corpus.documents(split), evaluation.limit)
    context.reset_backend_log()
    start_s = time.perf_counter()
    try:
        found = score_corpus(context.model, tokenizer, documents, setup, context.report)
    except ConfigError as error:
        raise ConfigError(f"corpus '{corpus.name}', split '{split}': {error}") from error
    seconds = time.perf_counter() - start_s
    metrics, absent = _metrics(found, seconds)
    return Measurement(
        metrics=metrics,
        absent=absent,
        series=_series(found),
        documents=tuple(asdict(document) for document in found.documents),
        backend={"evaluation": context.model.executed_names},
    )


def _metrics(found: "CorpusLoss", seconds: float) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return the metrics of a corpus, and the reasons why others are not defined."""
    metrics = {
        "nats_per_token": Metric(unit="nats", value=found.nll_nats / found.num_tokens),
        "num_documents": Metric(unit="count", value=len(found.documents)),
        "num_tokens": Metric(unit="count", value=found.num_tokens),
        "tokens_per_s": Metric(unit="tokens/s", value=tokens_per_second(found.num_tokens, seconds)),
    }
    if found.num_bytes is None or found.num_words is None:
        reason = (
            "what is scored may begin or end within a character, or the tokenizer changes a text that is cut: its "
            "bytes and words are not known"
        )
        return metrics, dict.fromkeys(IN_TEXT, reason)
    metrics |= {
        "bits_per_byte": Metric(unit="bits", value=found.nll_nats / math.log(2) / found.num_bytes),
        "num_bytes": Metric(unit="count", value=found.num_bytes),
        "num_words": Metric(unit="count", value=found.num_words),
    }
    try:
        metrics["word_perplexity"] = Metric(unit="ratio", value=math.exp(found.nll_nats / found.num_words))
    except (OverflowError, ValueError):  # beyond what a float, or a record, holds
        return metrics, {"word_perplexity": f"e^{found.nll_nats / found.num_words:.0f} is too large a number"}
    return metrics, {}


def _series(found: "CorpusLoss") -> dict[str, Series]:
    """Return the loss by position in the document, where the protocol has it."""
    if not found.bucket_ends:
        return {}
    losses = zip(found.bucket_nats, found.bucket_tokens, strict=True)
    return {
        "loss_by_position": Series(
            unit="nats",
            x_name="position",
            x=found.bucket_ends,
            y=tuple(nats / tokens for nats, tokens in losses),
            counts=found.bucket_tokens,
        )
    }


WORKLOAD = Workload(
    name="perplexity",
    title="Perplexity",
    metrics=(
        MetricSpec("bits_per_byte", "bits/byte", True, better="better"),
        MetricSpec("nats_per_token", "nats/token", True, better="better"),
        MetricSpec("word_perplexity", "word perplexity", True, better="better", unit="ratio"),
    ),
    quantity="bits per byte",
    replicate="document",
    scores="text",
    spec=PerplexitySpec,
    measure=measure,
    find_inputs=find_inputs,
    order=6,
    one_round=True,
)
