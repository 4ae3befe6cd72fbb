"""Loss on words that complete a rare pair, seen earlier in the document or new; see `evaluation.slices`."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from retbench.config.evaluation import RecallSlicesSpec
from retbench.errors import ConfigError
from retbench.planning.cells import Inputs, ModelUnderTest, SlicedText
from retbench.records.record import Metric
from retbench.units import tokens_per_second
from retbench.workloads.workload import Measurement, MetricSpec, Workload

if TYPE_CHECKING:
    from retbench.evaluation.slices import DocumentSlices
    from retbench.workloads.context import Context

GAIN_BY_DISTANCE = "hit_gain_by_distance"
"""Series of the gain, whose ends of the 95 % interval over documents are the series with `_low` and `_high`."""


def find_inputs(spec: RecallSlicesSpec, models: Sequence[ModelUnderTest], data_dir: Path | None) -> Inputs:
    """Describe what the losses of each model on each corpus depend on.

    Raises:
        ConfigError: as for perplexity, or the corpus in which pairs are counted is missing or has no split `train`.
        UnsupportedError: the data of a corpus cannot be obtained here.
    """
    from retbench.data.corpora import check_split, load_corpus
    from retbench.workloads.evaluation_inputs import find_texts

    counted = None if spec.counted_in is None else load_corpus(spec.counted_in, data_dir=data_dir)
    if counted is not None:
        check_split(counted, "train")
    return {
        key: SlicedText(
            **dict(evaluation),
            counted_in=spec.counted_in,
            counted_in_fingerprint=counted.fingerprint if counted else None,
            max_count=spec.max_count,
        )
        for key, evaluation in find_texts("recall_slices", spec, models, data_dir).items()
    }


def measure(context: "Context") -> Measurement:
    """Score the slices of the cell's corpus.

    Raises:
        ConfigError: a corpus is not the one that was planned, or nothing of it can be scored.
    """
    from retbench.evaluation.bins import ratio_series
    from retbench.evaluation.slices import distance_ends, score_slices
    from retbench.workloads.evaluation_inputs import corpus_of, counted_corpus_of, tokenizer_of

    cell, evaluation = context.cell, context.cell.evaluation
    assert isinstance(evaluation, SlicedText)
    tokenizer, corpus, counted = tokenizer_of(context), corpus_of(context), counted_corpus_of(context)
    documents = islice(corpus.documents(evaluation.split or "test"), evaluation.limit)
    context.reset_backend_log()
    start_s = time.perf_counter()
    try:
        found = score_slices(
            context.model,
            tokenizer,
            documents,
            num_bytes=cell.point.context_len,
            max_count=evaluation.max_count,
            counted=None if counted is None else lambda: (each.text for each in counted.documents("train")),
            report=context.report,
        )
    except ConfigError as error:
        raise ConfigError(f"corpus '{corpus.name}', split '{evaluation.split}': {error}") from error
    seconds = time.perf_counter() - start_s
    metrics, absent = _metrics(found, seconds)
    return Measurement(
        metrics=metrics,
        absent=absent,
        series=ratio_series(
            GAIN_BY_DISTANCE,
            "nats",
            ("distance_bytes", distance_ends(cell.point.context_len)),
            [each.gains_by_distance for each in found],
            [each.hits_by_distance for each in found],
        ),
        documents=tuple(asdict(document) for document in found),
        backend={"evaluation": context.model.executed_names},
    )


def _metrics(found: Sequence["DocumentSlices"], seconds: float) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return the metrics of a corpus, and why others are not defined."""
    hits, first, copied = (
        sum(getattr(each, name) for each in found) for name in ("num_hits", "num_first", "copied_bytes")
    )
    num_tokens = sum(each.num_tokens for each in found)
    in_bits = copied * math.log(2)
    quotients = {
        "hit_gain_nats": ("nats", "gain_nats", hits),
        "hit_nats": ("nats", "hit_nats", hits),
        "first_nats": ("nats", "first_nats", first),
        "first_copy_bits_per_byte": ("bits", "first_copy_nats", in_bits),
        "second_copy_bits_per_byte": ("bits", "second_copy_nats", in_bits),
    }
    metrics = {
        name: Metric(unit=unit, value=math.fsum(getattr(each, field) for each in found) / count)
        for name, (unit, field, count) in quotients.items()
        if count
    }
    metrics |= {
        "num_hits": Metric(unit="count", value=hits),
        "num_first": Metric(unit="count", value=first),
        "num_documents": Metric(unit="count", value=len(found)),
        "num_tokens": Metric(unit="count", value=num_tokens),
        "tokens_per_s": Metric(unit="tokens/s", value=tokens_per_second(num_tokens, seconds)),
    }
    reason = "no word of the documents is in this slice"
    return metrics, {name: reason for name, (_, _, count) in quotients.items() if not count}


WORKLOAD = Workload(
    name="recall_slices",
    title="Recall in text",
    metrics=(
        MetricSpec("hit_gain_nats", "gain of a repeated pair, nats/word", False, better="more gain"),
        MetricSpec("hit_nats", "loss on repeated pairs, nats/word", True),
        MetricSpec("first_nats", "loss on new pairs, nats/word", True),
        MetricSpec("first_copy_bits_per_byte", "first copy, bits/byte", True),
        MetricSpec("second_copy_bits_per_byte", "second copy, bits/byte", True),
    ),
    quantity="gain of a repeated pair",
    replicate="document",
    scores="slices",
    spec=RecallSlicesSpec,
    measure=measure,
    find_inputs=find_inputs,
    order=8,
    one_round=True,
)
