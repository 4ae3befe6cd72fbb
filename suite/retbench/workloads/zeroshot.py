"""Answers to a zero-shot or few-shot task; see `evaluation.zeroshot` for how they are scored."""

import math
import time
from dataclasses import asdict

from retbench.config.evaluation import FEWSHOT_SEED
from retbench.evaluation.lm import DecoderLM
from retbench.evaluation.zeroshot import TaskScores, evaluate
from retbench.records.record import Metric
from retbench.units import tokens_per_second
from retbench.workloads.context import Context, Measurement, Notes
from retbench.workloads.reading import evaluation_of, tokenizer_of

UNITS = {"bits_per_byte": "bits"}
"""Of metrics that are not ratios."""


def measure(context: Context) -> Measurement:
    """Scores of the cell's task, and those of each document.

    Raises:
        ConfigError: the tokenizer does not fit.
        UnsupportedError: the task's data cannot be had.
    """
    point, evaluation = context.cell.point, evaluation_of(context)
    lm = DecoderLM(
        context.model,
        tokenizer_of(context),
        max_length=point.context_len,
        add_bos=bool(evaluation.add_bos),
    )
    lm.report = context.report
    context.forget_what_ran()
    start_s = time.perf_counter()
    scores = evaluate(
        lm,
        point.task or "",
        data_dir=context.data_dir,
        limit=evaluation.limit,
        num_fewshot=point.num_fewshot or 0,
        seed=FEWSHOT_SEED if evaluation.fewshot_seed is None else evaluation.fewshot_seed,
    )
    seconds = time.perf_counter() - start_s
    metrics = _metrics(scores, seconds)
    finite = {name: metric for name, metric in metrics.items() if metric is not None}
    return Measurement(
        metrics=finite,
        absent=dict.fromkeys(metrics.keys() - finite.keys(), "it is too large a number, or none"),
        documents=tuple({**asdict(document), **document.metrics} for document in scores.documents),
        backend=_notes(context, scores),
    )


def _metrics(scores: TaskScores, seconds: float) -> dict[str, Metric | None]:
    """lm-eval's metrics by their own names, each with its standard error, and what was counted; None: not finite."""
    found: dict[str, Metric | None] = {}
    for name, score in scores.metrics.items():
        unit = UNITS.get(name, "ratio")
        found[name] = Metric(unit=unit, value=score.value) if math.isfinite(score.value) else None
        if score.stderr is not None:
            whole = math.isfinite(score.stderr)
            found[f"{name}_stderr"] = Metric(unit=unit, value=score.stderr) if whole else None
    return {
        **found,
        "num_documents": Metric(unit="count", value=len(scores.documents)),
        "num_requests": Metric(unit="count", value=scores.num_requests),
        "num_truncated": Metric(unit="count", value=scores.num_truncated),
        "tokens_per_s": Metric(unit="tokens/s", value=tokens_per_second(scores.num_input_tokens, seconds)),
    }


def _notes(context: Context, scores: TaskScores) -> Notes:
    """What ran, and what makes two scores comparable."""
    notes: Notes = {
        "evaluation": "+".join(sorted(set(context.model.executed_backends().values()))),
        "shown": scores.loaded.entry.metric,
        "prompts_fingerprint": scores.prompts_fingerprint,
        "task_version": scores.task_version,
        "lm_eval_version": scores.lm_eval_version,
        "data_source": scores.loaded.data_source,
        "task_split": scores.loaded.split,
    }
    if scores.loaded.data_note:
        notes["data_note"] = scores.loaded.data_note
    if scores.loaded.fewshot_source is not None:
        notes |= {
            "fewshot_source": scores.loaded.fewshot_source,
            "fewshot_seed": scores.loaded.seed,
        }
    return notes
