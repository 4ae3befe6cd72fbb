"""Scores of zero-shot and few-shot tasks; see `evaluation.zeroshot` for how they are computed."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retbench.config.evaluation import FEWSHOT_SEED, ZeroshotSpec
from retbench.planning.cells import Evaluation, Inputs, ModelUnderTest
from retbench.records.record import Metric
from retbench.units import tokens_per_second
from retbench.workloads.workload import Measurement, MetricSpec, Notes, Workload

if TYPE_CHECKING:
    from retbench.evaluation.zeroshot import DocumentScore, TaskScores
    from retbench.workloads.context import Context

UNITS = {"bits_per_byte": "bits"}
"""Units of the metrics that are not ratios."""


def find_inputs(spec: ZeroshotSpec, models: Sequence[ModelUnderTest], data_dir: Path | None) -> Inputs:
    """Describe what the scores of each model on each task depend on.

    Raises:
        ConfigError: a tokenizer is missing or does not fit, or a task is unknown or takes no examples.
        UnsupportedError: the data of a task cannot be obtained here.
    """
    from retbench.data.tokenizers import check_bos_token
    from retbench.evaluation.tasks import check_task
    from retbench.workloads.evaluation_inputs import choose_tokenizer

    for task in spec.tasks:
        check_task(task, num_fewshot=max(spec.num_fewshot), data_dir=data_dir)
    found: Inputs = {}
    for model in models:
        tokenizer = choose_tokenizer(model, spec.tokenizer, data_dir)
        if spec.add_bos:
            check_bos_token(tokenizer)
        evaluation = Evaluation(
            limit=spec.limit,
            fewshot_seed=spec.fewshot_seed,
            add_bos=spec.add_bos,
            tokenizer=tokenizer.name,
            tokenizer_fingerprint=tokenizer.fingerprint,
        )
        found |= {(model.label, task): evaluation for task in spec.tasks}
    return found


def measure(context: "Context") -> Measurement:
    """Score the cell's task and each of its documents.

    Raises:
        ConfigError: the tokenizer does not fit.
        UnsupportedError: the task's data cannot be obtained.
    """
    from retbench.evaluation.lm import DecoderLM
    from retbench.evaluation.tasks import load_task
    from retbench.evaluation.zeroshot import evaluate
    from retbench.workloads.evaluation_inputs import evaluation_of, tokenizer_of

    point, evaluation = context.cell.point, evaluation_of(context)
    tokenizer = tokenizer_of(context)
    start_s = time.perf_counter()
    task = load_task(
        point.task or "",
        data_dir=context.data_dir,
        num_fewshot=point.num_fewshot or 0,
        seed=FEWSHOT_SEED if evaluation.fewshot_seed is None else evaluation.fewshot_seed,
        tokenizer=tokenizer,
        context_len=point.context_len,
    )
    lm = DecoderLM(
        context.model,
        tokenizer,
        max_length=point.context_len + task.extra_tokens,
        add_bos=bool(evaluation.add_bos),
        truncates=not task.entry.reads_whole,
    )
    lm.report = context.report
    context.reset_backend_log()
    scores = evaluate(lm, task, limit=evaluation.limit)
    seconds = time.perf_counter() - start_s
    metrics = _metrics(scores, seconds)
    finite = {name: metric for name, metric in metrics.items() if metric is not None}
    return Measurement(
        metrics=finite,
        absent=dict.fromkeys(metrics.keys() - finite.keys(), "it is too large a number, or none"),
        documents=tuple(_row(document) for document in scores.documents),
        backend=_notes(context, scores),
    )


def _row(document: "DocumentScore") -> dict[str, Any]:
    """Return what is kept of a document: its fields and each of its metrics."""
    fields = {name: value for name, value in asdict(document).items() if value is not None}
    return fields | document.metrics


def _metrics(scores: "TaskScores", seconds: float) -> dict[str, Metric | None]:
    """Return lm-eval's metrics by its names, with their standard errors and counts; None where one is not finite."""
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


def _notes(context: "Context", scores: "TaskScores") -> Notes:
    """Return the executed backend and what must agree before two scores are compared."""
    notes: Notes = {
        "evaluation": context.model.executed_names,
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


WORKLOAD = Workload(
    name="zeroshot",
    title="Zero-shot tasks",
    metrics=(
        MetricSpec("acc", "accuracy", False, optional=True, better="better"),
        MetricSpec("acc_norm", "accuracy, normalised by length", False, optional=True, better="better"),
        MetricSpec(
            "contains", "answers that contain the value", False, optional=True, better="better", unit="ratio"
        ),
    ),
    quantity="accuracy",
    replicate="document",
    spec=ZeroshotSpec,
    measure=measure,
    find_inputs=find_inputs,
    order=7,
    one_round=True,
)
