"""Perplexity of a corpus; see `evaluation.perplexity` for how it is scored."""

import math
import time
from dataclasses import asdict
from itertools import islice

from retbench.data.corpora import load_corpus
from retbench.errors import ConfigError
from retbench.evaluation.perplexity import CorpusLoss, PerplexitySetup, score_corpus
from retbench.planning.cells import Cell, Evaluation
from retbench.records.record import Metric, Series
from retbench.units import tokens_per_second
from retbench.workloads.context import Context, Measurement
from retbench.workloads.reading import evaluation_of, tokenizer_of

IN_TEXT = ("bits_per_byte", "word_perplexity", "num_bytes", "num_words")
"""Metrics of what is scored as a text, which it is not where it may begin within a character."""


def measure(context: Context) -> Measurement:
    """Losses of the cell's corpus by its protocol.

    Raises:
        ConfigError: the corpus is not the one that was planned, or nothing of it can be scored.
    """
    cell, evaluation = context.cell, evaluation_of(context)
    tokenizer = tokenizer_of(context)
    corpus = load_corpus(cell.point.task or "", data_dir=context.data_dir)
    if corpus.fingerprint != evaluation.corpus_fingerprint:
        raise ConfigError(
            f"corpus '{corpus.name}' has changed during the run: its fingerprint is {corpus.fingerprint} and was "
            f"{evaluation.corpus_fingerprint}. Run the same command again."
        )
    split = evaluation.split or "test"
    documents = islice(corpus.documents(split), evaluation.limit)
    context.forget_what_ran()
    start_s = time.perf_counter()
    try:
        found = score_corpus(context.model, tokenizer, documents, _reading(cell, evaluation), context.report)
    except ConfigError as error:
        raise ConfigError(f"corpus '{corpus.name}', split '{split}': {error}") from error
    seconds = time.perf_counter() - start_s
    metrics, absent = _metrics(found, seconds)
    return Measurement(
        metrics=metrics,
        absent=absent,
        series=_series(found),
        documents=tuple(asdict(document) for document in found.documents),
        backend={"evaluation": "+".join(sorted(set(context.model.executed_backends().values())))},
    )


def _reading(cell: Cell, evaluation: Evaluation) -> PerplexitySetup:
    """How the documents are given to the model."""
    if cell.point.protocol is None:
        raise ConfigError(f"the point of '{cell.model_name}' on '{cell.point.task}' has no protocol.")
    return PerplexitySetup(
        cell.point.protocol, cell.point.context_len, cell.point.stride, evaluation.max_document_tokens
    )


def _metrics(found: CorpusLoss, seconds: float) -> tuple[dict[str, Metric], dict[str, str]]:
    """Metrics of a corpus, and what is not defined of it."""
    metrics = {
        "nats_per_token": Metric(unit="nats", value=found.nll_nats / found.num_tokens),
        "num_documents": Metric(unit="count", value=len(found.documents)),
        "num_tokens": Metric(unit="count", value=found.num_tokens),
        "tokens_per_s": Metric(unit="tokens/s", value=tokens_per_second(found.num_tokens, seconds)),
    }
    if found.num_bytes is None or found.num_words is None:
        reason = "what is scored may begin or end within a character, so it has no whole bytes and words"
        return metrics, dict.fromkeys(IN_TEXT, reason)
    metrics |= {
        "bits_per_byte": Metric(unit="bits", value=found.nll_nats / math.log(2) / found.num_bytes),
        "num_bytes": Metric(unit="count", value=found.num_bytes),
        "num_words": Metric(unit="count", value=found.num_words),
    }
    try:
        metrics["word_perplexity"] = Metric(unit="ratio", value=math.exp(found.nll_nats / found.num_words))
    except OverflowError:
        return metrics, {"word_perplexity": f"e^{found.nll_nats / found.num_words:.0f} is too large a number"}
    return metrics, {}


def _series(found: CorpusLoss) -> dict[str, Series]:
    """The loss by position, where positions are those in the document."""
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
