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
from retbench.planning.cells import Evaluation, Inputs, ModelUnderTest
from retbench.records.record import Metric, Series
from retbench.units import tokens_per_second
from retbench.workloads.workload import Measurement, MetricSpec, Workload

if TYPE_CHECKING:
    from retbench.data.corpora import Corpus
    from retbench.evaluation.perplexity import CorpusLoss
    from retbench.workloads.context import Context

IN_TEXT = ("bits_per_byte", "word_perplexity", "num_bytes", "num_words")
"""Metrics that are defined only where the scored span consists of whole characters."""


def find_inputs(spec: PerplexitySpec, models: Sequence[ModelUnderTest], data_dir: Path | None) -> Inputs:
    """Describe what the perplexity of each model on each corpus depends on.

    Raises:
        ConfigError: a tokenizer or corpus is missing or does not fit, or a corpus has changed since a model was trained
            on it.
        UnsupportedError: the data of a corpus cannot be obtained here.
    """
    from retbench.data.corpora import check_split, load_corpus
    from retbench.data.tokenizers import prefix_token
    from retbench.workloads.evaluation_inputs import choose_tokenizer

    corpora = [load_corpus(name, data_dir=data_dir) for name in spec.corpora]
    for corpus in corpora:
        check_split(corpus, spec.split)
    found: Inputs = {}
    for model in models:
        tokenizer = choose_tokenizer(model, spec.tokenizer, data_dir)
        prefix_token(tokenizer)
        for corpus in corpora:
            _check_unchanged(model, corpus)
            found[model.label, corpus.name] = Evaluation(
                split=spec.split,
                limit=spec.limit,
                max_document_tokens=spec.max_document_tokens,
                tokenizer=tokenizer.name,
                tokenizer_fingerprint=tokenizer.fingerprint,
                corpus_fingerprint=corpus.fingerprint,
            )
    return found


def _check_unchanged(model: ModelUnderTest, corpus: "Corpus") -> None:
    """Refuse a corpus that has changed since a model was trained on it.

    Its held-out documents are chosen among all documents, so that the present ones may have been in the training text.

    Raises:
        ConfigError: the corpus has changed.
    """
    weights = model.trained_weights
    then = weights.corpus_fingerprint
    if weights.info.corpus == corpus.name and then not in (None, corpus.fingerprint):
        experiment, _, profile = weights.info.source.partition("/")
        is_path = weights.info.seed is None
        command = "" if is_path else f" (retbench train {experiment} --profile {profile} --fresh)"
        raise ConfigError(
            f"the corpus '{corpus.name}' has changed since '{model.label}' was trained on it (fingerprint {then} "
            f"then, {corpus.fingerprint} now): its held-out documents may have been in the training text. Restore its "
            f"files, train again{command}, or measure another corpus (--set workloads.perplexity.corpora=)."
        )


def measure(context: "Context") -> Measurement:
    """Score the cell's corpus by its protocol.

    Raises:
        ConfigError: the corpus is not the one that was planned, or nothing of it can be scored.
    """
    from retbench.data.corpora import load_corpus
    from retbench.evaluation.perplexity import PerplexitySetup, score_corpus
    from retbench.workloads.evaluation_inputs import evaluation_of, tokenizer_of

    cell, evaluation = context.cell, evaluation_of(context)
    tokenizer = tokenizer_of(context)
    corpus = load_corpus(cell.point.task or "", data_dir=context.data_dir)
    if corpus.fingerprint != evaluation.corpus_fingerprint:
        raise ConfigError(
            f"corpus '{corpus.name}' has changed during the run: its fingerprint is {corpus.fingerprint} and was "
            f"{evaluation.corpus_fingerprint}. Run the same command again."
        )
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
        backend={"evaluation": "+".join(sorted(set(context.model.executed_backends().values())))},
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
        reason = "what is scored may begin or end within a character, so it has no whole bytes and words"
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
    kind="quality",
    metrics=(
        MetricSpec("bits_per_byte", "bits/byte", True, better="better"),
        MetricSpec("nats_per_token", "nats/token", True, better="better"),
        MetricSpec("word_perplexity", "word perplexity", True, better="better"),
    ),
    quantity="bits per byte",
    replicate="document",
    spec=PerplexitySpec,
    measure=measure,
    find_inputs=find_inputs,
    order=6,
    one_round=True,
)
