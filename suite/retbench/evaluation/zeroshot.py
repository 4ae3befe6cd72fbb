"""A model's scores on a zero-shot or few-shot task, down to the document, with lm-eval's prompts and metrics."""

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from retbench.errors import ConfigError, RetbenchError
from retbench.evaluation.local_data import one_line
from retbench.evaluation.tasks import LoadedTask, quiet

if TYPE_CHECKING:
    from retbench.evaluation.lm import DecoderLM

MetricPart = float | tuple[float, int]
"""A document's part of a metric: a number, or a log-likelihood in nats and its number of words or bytes."""


class MetricScore(NamedTuple):
    """A metric over all documents."""

    value: float
    stderr: float | None
    """Standard error over the sample of documents; None for a single document."""
    higher_is_better: bool


@dataclass(frozen=True)
class DocumentScore:
    """A model's scores on one document.

    Attributes:
        doc_id: Its position in the split.
        doc_hash: sha256 of its fields.
        prompt_hash: sha256 of the text before its first continuation.
        target: The right choice, by index or text, as the task has it.
        loglikelihoods: Per request, nats: the choices in order, or the one text; empty if a text is generated.
        is_greedy: Per request, True if it was the most probable text; empty if the task does not ask.
        metrics: Its part of every metric.
        text: The generated text; None if continuations are scored.
    """

    doc_id: int
    doc_hash: str
    prompt_hash: str
    target: str
    loglikelihoods: tuple[float, ...]
    is_greedy: tuple[bool, ...]
    metrics: dict[str, MetricPart]
    text: str | None = None


@dataclass(frozen=True)
class TaskScores:
    """A model's scores on a task, and everything that makes two scores comparable.

    Attributes:
        loaded: The task, its data and its examples.
        lm_eval_version: Version of the package.
        metrics: Every metric of the task; `loaded.entry.metric` is the one to show first.
        documents: Every scored document, in order.
        prompts_fingerprint: Hash of every context and continuation, equal only for models given the same prompts.
        num_requests: Scored continuations.
        num_truncated: Continuations whose context did not fit `max_length`.
        num_input_tokens: Tokens of all requests.
        num_computed_tokens: Tokens that the model read.
    """

    loaded: LoadedTask
    lm_eval_version: str
    metrics: dict[str, MetricScore]
    documents: list[DocumentScore]
    prompts_fingerprint: str
    num_requests: int
    num_truncated: int
    num_input_tokens: int
    num_computed_tokens: int

    @property
    def task_version(self) -> str:
        """lm-eval's version of the task."""
        return str(self.loaded.task.VERSION)


def evaluate(lm: "DecoderLM", loaded: LoadedTask, *, limit: int | None = None) -> TaskScores:
    """Score a model on a loaded task: on its first documents, or on all if `limit` is None.

    Raises:
        ConfigError: the task's local files or the tokenizer do not fit.
    """
    from lm_eval import __version__

    lm.num_truncated = lm.num_input_tokens = lm.num_computed_tokens = 0
    loaded.task.set_fewshot_seed(loaded.seed)  # so that a task scored twice has the same prompts
    samples = run_lm_eval(lm, loaded, limit=limit)
    documents = [_document(sample, loaded.task.OUTPUT_TYPE) for sample in samples]
    return TaskScores(
        loaded=loaded,
        lm_eval_version=__version__,
        metrics=_aggregate(loaded.task, documents),
        documents=documents,
        prompts_fingerprint=_fingerprint(samples),
        num_requests=sum(len(sample["arguments"]) for sample in samples),
        num_truncated=lm.num_truncated,
        num_input_tokens=lm.num_input_tokens,
        num_computed_tokens=lm.num_computed_tokens,
    )


def run_lm_eval(lm: Any, loaded: LoadedTask, *, limit: int | None) -> list[dict[str, Any]]:
    """Return only the samples of `lm_eval_results`."""
    samples: list[dict[str, Any]] = lm_eval_results(lm, loaded, limit=limit)["samples"][loaded.entry.name]
    return samples


def lm_eval_results(lm: Any, loaded: LoadedTask, *, limit: int | None) -> dict[str, Any]:
    """Return lm-eval's results of any LM on a task, with its samples in order.

    A sample holds a document's requests, responses and metrics.

    Raises:
        ConfigError: a row of a local file has a value that lm-eval cannot make a prompt or a metric of.
    """
    from lm_eval.evaluator import evaluate as run

    name = loaded.entry.name
    try:
        with quiet(), redirect_stderr(io.StringIO()):  # progress bars that no setting turns off
            # Without bootstrap, for which lm-eval starts a pool of processes, and which no metric here needs.
            found: dict[str, Any] = run(
                lm, {name: loaded.task}, limit=limit, bootstrap_iters=0, log_samples=True
            )
    except Exception as error:
        is_the_models = isinstance(error, RetbenchError | RuntimeError | MemoryError) or (
            isinstance(error, AttributeError) and error.obj is lm  # it does not answer this kind of request
        )
        if is_the_models or loaded.data_source != "local":
            raise
        raise ConfigError(
            f"task {name}: {', '.join(loaded.data_files)}: lm-eval cannot score these rows ({one_line(error)}). Fetch "
            "the files anew, or take them away to use another source."
        ) from error
    found["samples"][name].sort(key=lambda sample: sample["doc_id"])
    return found


def _document(sample: Mapping[str, Any], output_type: str) -> DocumentScore:
    responses = sample["filtered_resps"]
    generates, scores_texts = output_type == "generate_until", output_type == "loglikelihood_rolling"
    scores_choices = not generates and not scores_texts
    loglikelihoods = [response[0] for response in responses] if scores_choices else responses
    return DocumentScore(
        doc_id=sample["doc_id"],
        doc_hash=sample["doc_hash"],
        prompt_hash=sample["prompt_hash"],
        target=str(sample["target"]) if not scores_texts else "",
        loglikelihoods=() if generates else tuple(loglikelihoods),
        is_greedy=tuple(response[1] for response in responses) if scores_choices else (),
        metrics={metric: sample[metric] for metric in sample["metrics"]},
        text=responses[0] if generates else None,
    )


def _aggregate(task: Any, documents: Sequence[DocumentScore]) -> dict[str, MetricScore]:
    """Aggregate every metric by lm-eval's own functions, with standard errors by ours."""
    scores = {}
    for metric, aggregate in task.aggregation().items():
        values = [document.metrics[metric] for document in documents]
        better = bool(task.higher_is_better()[metric])
        scores[metric] = MetricScore(float(aggregate(values)), _stderr(metric, values), better)
    return scores


def _stderr(metric: str, values: Sequence[MetricPart]) -> float | None:
    """Return the standard error over documents, for a function of a mean by the delta method."""
    if len(values) < 2:
        return None
    if isinstance(values[0], tuple):
        return _ratio_stderr(metric, [value for value in values if isinstance(value, tuple)])
    numbers = [value for value in values if not isinstance(value, tuple)]
    of_mean = stdev(numbers) / math.sqrt(len(numbers))
    return of_mean * math.exp(-fmean(numbers)) if metric == "perplexity" else of_mean


def _ratio_stderr(metric: str, pairs: Sequence[tuple[float, int]]) -> float:
    """Return the standard error of nats per word or byte, converted to the metric."""
    units = sum(count for _, count in pairs)
    ratio = sum(total for total, _ in pairs) / units
    squares = math.fsum((total - ratio * count) ** 2 for total, count in pairs)
    of_ratio = math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / units
    return of_ratio / math.log(2) if metric == "bits_per_byte" else of_ratio * math.exp(-ratio)


def _fingerprint(samples: Sequence[Mapping[str, Any]]) -> str:
    """Hash every context and continuation, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps(sample["arguments"], ensure_ascii=False).encode())
    return digest.hexdigest()[:12]
