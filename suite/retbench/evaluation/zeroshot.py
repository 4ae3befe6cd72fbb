"""A model's scores on a zero-shot or few-shot task, down to the document, in lm-eval's prompts and metrics."""

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from retbench.config.evaluation import FEWSHOT_SEED
from retbench.errors import ConfigError
from retbench.evaluation.tasks import LoadedTask, load_task, quiet

if TYPE_CHECKING:
    from retbench.evaluation.lm import DecoderLM

Value = float | tuple[float, int]
"""A document's part of a metric: a number, or a log-likelihood in nats and the words or bytes that it is of."""


class MetricScore(NamedTuple):
    """A metric over all documents."""

    value: float
    stderr: float | None
    """Standard error of the sample of documents; None of a single document."""
    higher_is_better: bool


@dataclass(frozen=True)
class DocumentScore:
    """One document.

    Attributes:
        doc_id: Its place in the split.
        doc_hash: sha256 of its fields.
        prompt_hash: sha256 of the text before its first continuation.
        target: The right choice, by index or text, as the task has it.
        loglikelihoods: Of each request, nats: the choices in order, or the one text.
        is_greedy: Whether each was the likeliest text; empty where the task does not ask.
        metrics: Its part of every metric.
    """

    doc_id: int
    doc_hash: str
    prompt_hash: str
    target: str
    loglikelihoods: tuple[float, ...]
    is_greedy: tuple[bool, ...]
    metrics: dict[str, Value]


@dataclass(frozen=True)
class TaskScores:
    """What a model scored on a task, and everything that makes two scores comparable.

    Attributes:
        task: Its name.
        task_version: lm-eval's version of it.
        lm_eval_version: Of the package.
        metrics: Every metric of the task; `shown` is the one to show first.
        documents: Every document that was scored, in order.
        prompts_fingerprint: Of every context and continuation: two models have seen the same only where it is equal.
        num_requests: Continuations scored.
        num_truncated: Those whose context did not fit `max_length`.
        num_input_tokens: Tokens of all requests.
        num_computed_tokens: Those that the model had to read.
        max_length: Tokens the model may read at once.
        data_source: local or hub; with `data_files` and `data_note` as of `tasks.LoadedTask`.
        split: The split evaluated.
        limit: Documents asked for; None for all.
        num_fewshot: Examples before each document; `fewshot_source` and `seed` tell which.
    """

    task: str
    task_version: str
    lm_eval_version: str
    shown: str
    metrics: dict[str, MetricScore]
    documents: list[DocumentScore]
    prompts_fingerprint: str
    num_requests: int
    num_truncated: int
    num_input_tokens: int
    num_computed_tokens: int
    max_length: int
    data_source: str
    data_files: tuple[str, ...]
    data_note: str
    split: str
    limit: int | None
    num_fewshot: int
    fewshot_source: str | None
    seed: int


def evaluate(
    lm: "DecoderLM",
    task_name: str,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    num_fewshot: int = 0,
    seed: int = FEWSHOT_SEED,
) -> TaskScores:
    """Score a model on a task.

    Args:
        lm: The model.
        task_name: In the catalogue.
        data_dir: Folder to look for local files in; that of RETBENCH_DATA when None.
        limit: The first so many documents; None for all.
        num_fewshot: Examples before each document.
        seed: Of their draw.

    Raises:
        ConfigError: unknown task, unreadable files, a limit below 1, a tokenizer that does not fit.
        UnsupportedError: the task's data cannot be had.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, or left out for every document; got {limit}.")
    loaded = load_task(task_name, data_dir=data_dir, num_fewshot=num_fewshot, seed=seed)
    return score_task(lm, loaded, limit=limit)


def score_task(lm: "DecoderLM", loaded: LoadedTask, *, limit: int | None = None) -> TaskScores:
    """Score a model on a task that is loaded; see `evaluate`."""
    from lm_eval import __version__

    name = loaded.entry.name
    lm.num_truncated = lm.num_input_tokens = lm.num_computed_tokens = 0
    loaded.task.set_fewshot_seed(loaded.seed)  # again: a task scored twice asks the same questions
    samples = run_lm_eval(lm, loaded, limit=limit)
    documents = [_document(sample, loaded.task.OUTPUT_TYPE) for sample in samples]
    return TaskScores(
        task=name,
        task_version=str(loaded.task.VERSION),
        lm_eval_version=__version__,
        shown=loaded.entry.metric,
        metrics=_aggregate(loaded.task, documents),
        documents=documents,
        prompts_fingerprint=_fingerprint(samples),
        num_requests=sum(len(sample["arguments"]) for sample in samples),
        num_truncated=lm.num_truncated,
        num_input_tokens=lm.num_input_tokens,
        num_computed_tokens=lm.num_computed_tokens,
        max_length=lm.max_length,
        data_source=loaded.data_source,
        data_files=loaded.data_files,
        data_note=loaded.data_note,
        split=loaded.split,
        limit=limit,
        num_fewshot=loaded.num_fewshot,
        fewshot_source=loaded.fewshot_source,
        seed=loaded.seed,
    )


def run_lm_eval(lm: Any, loaded: LoadedTask, *, limit: int | None) -> list[dict[str, Any]]:
    """lm-eval's own samples of any LM on a task: requests, answers and each document's metrics, in order."""
    from lm_eval.evaluator import evaluate as run

    name = loaded.entry.name
    with quiet(), redirect_stderr(io.StringIO()):  # for the bars that it draws whatever it is told
        # Without bootstrap: lm-eval's takes a pool of processes, and none of the metrics here needs one.
        found = run(lm, {name: loaded.task}, limit=limit, bootstrap_iters=0, log_samples=True)
    samples: list[dict[str, Any]] = found["samples"][name]
    return sorted(samples, key=lambda sample: sample["doc_id"])


def _document(sample: Mapping[str, Any], output_type: str) -> DocumentScore:
    """One document of lm-eval's samples."""
    answers = sample["filtered_resps"]
    scores_texts = output_type == "loglikelihood_rolling"
    return DocumentScore(
        doc_id=sample["doc_id"],
        doc_hash=sample["doc_hash"],
        prompt_hash=sample["prompt_hash"],
        target=str(sample["target"]) if not scores_texts else "",
        loglikelihoods=tuple(answers) if scores_texts else tuple(answer[0] for answer in answers),
        is_greedy=() if scores_texts else tuple(answer[1] for answer in answers),
        metrics={metric: sample[metric] for metric in sample["metrics"]},
    )


def _aggregate(task: Any, documents: Sequence[DocumentScore]) -> dict[str, MetricScore]:
    """Every metric over all documents, by lm-eval's own functions; standard errors by ours."""
    scores = {}
    for metric, aggregate in task.aggregation().items():
        values = [document.metrics[metric] for document in documents]
        better = bool(task.higher_is_better()[metric])
        scores[metric] = MetricScore(float(aggregate(values)), _stderr(metric, values), better)
    return scores


def _stderr(metric: str, values: Sequence[Value]) -> float | None:
    """Standard error over documents: of a mean, or of a function of one by its derivative (the delta method)."""
    if len(values) < 2:
        return None
    if isinstance(values[0], tuple):
        return _ratio_stderr(metric, [value for value in values if isinstance(value, tuple)])
    numbers = [value for value in values if not isinstance(value, tuple)]
    of_mean = stdev(numbers) / math.sqrt(len(numbers))
    return of_mean * math.exp(-fmean(numbers)) if metric == "perplexity" else of_mean


def _ratio_stderr(metric: str, pairs: Sequence[tuple[float, int]]) -> float:
    """Standard error of a ratio of two sums over documents, as nats per word or byte, then of what is made of it."""
    units = sum(count for _, count in pairs)
    ratio = sum(total for total, _ in pairs) / units
    squares = math.fsum((total - ratio * count) ** 2 for total, count in pairs)
    of_ratio = math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / units
    return of_ratio / math.log(2) if metric == "bits_per_byte" else of_ratio * math.exp(-ratio)


def _fingerprint(samples: Sequence[Mapping[str, Any]]) -> str:
    """Short hash of every context and continuation, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps(sample["arguments"], ensure_ascii=False).encode())
    return digest.hexdigest()[:12]
