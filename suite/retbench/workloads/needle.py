"""Numbers that are hidden in a long text and asked for at its end; `data.needle_prompts` makes the prompts."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from retbench.config.evaluation import HAYSTACKS, NeedleSpec
from retbench.planning.cells import Inputs, ModelUnderTest, NeedleInputs
from retbench.records.record import Metric, Series
from retbench.workloads.workload import Measurement, MetricSpec, Workload

if TYPE_CHECKING:
    from retbench.data.needle_prompts import Prompt
    from retbench.data.tokenizers import Tokenizer
    from retbench.evaluation.needles import NeedleAnswer
    from retbench.workloads.context import Context

SHARES = ("acc", "contains", "choice")
"""Shares of right answers: exact, contained, and preferred to every wrong value."""


def find_inputs(spec: NeedleSpec, models: Sequence[ModelUnderTest], data_dir: Path | None) -> Inputs:
    """Describe the prompts of each model, which depend on its tokenizer.

    Raises:
        ConfigError: a tokenizer or corpus is missing or does not fit, or a context has no room for a needle.
        UnsupportedError: the data of a corpus cannot be obtained here.
    """
    from retbench.data.corpora import load_corpus
    from retbench.data.needle_prompts import NOISE, haystack_sentences, make_prompt
    from retbench.data.tokenizers import prefix_token
    from retbench.workloads.evaluation_inputs import choose_tokenizer

    fingerprints = {
        name: None if name in HAYSTACKS else load_corpus(name, data_dir=data_dir).fingerprint
        for name in spec.haystacks
    }
    found: Inputs = {}
    for model in models:
        tokenizer = choose_tokenizer(model, spec.tokenizer, data_dir)
        prefix_token(tokenizer)
        shortest = min(spec.context_len) - 1
        for haystack, fingerprint in fingerprints.items():
            words = haystack if haystack in HAYSTACKS else NOISE
            make_prompt(tokenizer, haystack_sentences(words, None), words, 0, depth=0.0, num_tokens=shortest)
            found[model.label, haystack] = NeedleInputs(
                limit=spec.limit,
                num_depths=spec.num_depths,
                tokenizer=tokenizer.name,
                tokenizer_fingerprint=tokenizer.fingerprint,
                corpus_fingerprint=fingerprint,
            )
    return found


def measure(context: "Context") -> Measurement:
    """Answer the cell's prompts at every depth.

    Raises:
        ConfigError: a tokenizer or corpus is not the one that was planned, or the context has no room for a needle.
    """
    from retbench.data.tokenizers import check_vocabulary, prefix_token
    from retbench.evaluation.needles import answer_prompt
    from retbench.workloads.evaluation_inputs import tokenizer_of

    inputs = context.cell.evaluation
    assert isinstance(inputs, NeedleInputs)
    assert inputs.limit is not None
    tokenizer = tokenizer_of(context)
    check_vocabulary(tokenizer, context.model.config.vocab_size)
    prefix, prompt_at = prefix_token(tokenizer), _prompts(context, tokenizer)
    context.reset_backend_log()
    rows: list[dict[str, Any]] = []
    answers: list[NeedleAnswer] = []
    for number in range(inputs.num_depths):
        depth = number / (inputs.num_depths - 1)
        for index in range(number * inputs.limit, (number + 1) * inputs.limit):
            prompt = prompt_at(index, depth)
            answers.append(answer_prompt(context.model, tokenizer, prefix, prompt))
            rows.append(_row(index, depth, prompt, answers[-1]))
            context.report(len(prompt.tokens))
    return Measurement(
        metrics=_metrics(rows, answers),
        series=_by_depth(rows),
        documents=tuple(rows),
        backend={
            "evaluation": context.model.executed_names,
            "prompts_fingerprint": _hash([row["doc_hash"] for row in rows]),
        },
    )


def _prompts(context: "Context", tokenizer: "Tokenizer") -> "Callable[[int, float], Prompt]":
    """Return the function that makes the cell's prompt of an index at a depth."""
    from retbench.data.needle_prompts import haystack_sentences, make_prompt
    from retbench.workloads.evaluation_inputs import corpus_of

    point = context.cell.point
    haystack = point.task or ""
    sentences = haystack_sentences(haystack, None if haystack in HAYSTACKS else corpus_of(context))

    def prompt_at(index: int, depth: float) -> "Prompt":
        # One token fewer: the prompt follows the token that begins a text.
        room = point.context_len - 1
        return make_prompt(tokenizer, sentences, haystack, index, depth=depth, num_tokens=room)

    return prompt_at


def _row(index: int, depth: float, prompt: "Prompt", answer: "NeedleAnswer") -> dict[str, Any]:
    """Return what is kept of one answer."""
    return {
        "doc_id": index,
        "doc_hash": _hash(prompt.tokens),
        "depth_percent": 100 * depth,
        "num_tokens": len(prompt.tokens),
        "value": prompt.needle.value,
        "text": answer.text,
        "acc": int(answer.exact),
        "contains": int(answer.contains),
        "choice": int(answer.chosen),
        "rank": answer.rank,
        "answer_nats": answer.answer_nats,
    }


def _hash(values: Sequence[object]) -> str:
    """Return 12 hex digits over tokens or hashes."""
    return hashlib.sha256(" ".join(map(str, values)).encode()).hexdigest()[:12]


def _metrics(rows: Sequence[dict[str, Any]], answers: "Sequence[NeedleAnswer]") -> dict[str, Metric]:
    """Return the means over all depths, and what a prompt took."""
    shares = {name: fmean(row[name] for row in rows) for name in SHARES}
    metrics = {name: Metric(unit="ratio", value=value) for name, value in shares.items()}
    if len(rows) > 1:
        spread = math.sqrt(shares["acc"] * (1 - shares["acc"]) / (len(rows) - 1))
        metrics["acc_stderr"] = Metric(unit="ratio", value=spread)
    seconds = tuple(answer.prefill_s for answer in answers)
    return metrics | {
        "answer_nats": Metric(unit="nats", value=fmean(row["answer_nats"] for row in rows)),
        "prefill_s": Metric(unit="s", value=median(seconds), samples=seconds),
        "prompt_state_bytes": Metric(unit="bytes", value=max(answer.state_bytes for answer in answers)),
        "num_examples": Metric(unit="count", value=len(rows)),
    }


def _by_depth(rows: Sequence[dict[str, Any]]) -> dict[str, Series]:
    """Return each share by depth."""
    depths = list(dict.fromkeys(row["depth_percent"] for row in rows))
    groups = [[row for row in rows if row["depth_percent"] == depth] for depth in depths]
    return {
        f"{name}_by_depth": Series(
            unit="ratio",
            x_name="depth_percent",
            x=tuple(depths),
            y=tuple(fmean(row[name] for row in mine) for mine in groups),
            counts=tuple(map(len, groups)),
        )
        for name in SHARES
    }


WORKLOAD = Workload(
    name="needle",
    title="Needle in a haystack",
    metrics=(
        MetricSpec("acc", "exact", False, better="better"),
        MetricSpec("contains", "contains", False, better="better", unit="ratio"),
        MetricSpec("choice", "preferred to 9 wrong values", False, better="better", unit="ratio"),
        MetricSpec("answer_nats", "nats of the answer", True, better="better"),
    ),
    quantity="share of exact answers",
    replicate="document",
    scores="needles",
    spec=NeedleSpec,
    measure=measure,
    find_inputs=find_inputs,
    order=8,
    one_round=True,
)
