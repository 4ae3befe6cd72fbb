"""Recorded scores in the files that lm-eval writes: `results_*.json` and `samples_*.jsonl`.

A record holds the answers to the requests of each document, not their texts. lm-eval's own evaluation is run again on
the task's data, with the recorded answers in place of a model's, and makes everything but the model's description.
Source: lm-eval 0.4.13, `loggers/evaluation_tracker.py`, `result_schema.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from retbench.config.evaluation import FEWSHOT_SEED
from retbench.data.tokenizers import load_tokenizer
from retbench.errors import RecordError, RetbenchError, StorageError, shown
from retbench.evaluation.task_entries import find_task
from retbench.evaluation.tasks import LoadedTask, load_task
from retbench.evaluation.zeroshot import lm_eval_results
from retbench.files import inside, write_atomic
from retbench.records.documents import read_documents
from retbench.records.record import Record

Row = Mapping[str, Any]


class Scored(NamedTuple):
    """A record of scores by lm-eval."""

    record: Record
    folder: Path
    """Folder of the record file and of the file of its documents."""


class Written(NamedTuple):
    """Files of the scores of one model, and the tasks that have none."""

    files: list[Path]
    """The file of the results, then one file of samples per task; empty where every task was left out."""
    left_out: list[tuple[Scored, RetbenchError]]
    """The tasks that could not be written, each with the error."""


class RecordedAnswers:
    """A language model of lm-eval that gives the recorded answers.

    Args:
        rows: The recorded documents by number.
    """

    rank, world_size = 0, 1

    def __init__(self, rows: Mapping[int, Row]) -> None:
        self._rows = rows

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return log-likelihood in nats, and whether the text is the most probable one, of every request."""
        return [(self._answer(one, "loglikelihoods"), self._answer(one, "is_greedy")) for one in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of every whole text, nats."""
        return [self._answer(one, "loglikelihoods") for one in requests]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that was generated for every request."""
        return [self._answer(one, "text") for one in requests]

    def _answer(self, request: Any, name: str) -> Any:
        """Return a recorded value; RecordError for a request that was not answered."""
        answers = self._rows.get(request.doc_id, {}).get(name, [])
        if isinstance(answers, str):  # one text is generated for a document
            answers = [answers]
        if request.idx >= len(answers):
            raise RecordError(f"document {request.doc_id} has no answer {request.idx}")
        return answers[request.idx]


def write_lm_eval_files(
    model: str, scored: Sequence[Scored], folder: Path, *, data_dir: Path | None = None
) -> Written:
    """Write the scores of one model as lm-eval does, in a folder of the model's name.

    A task is left out if its documents are damaged, if its data or lm-eval are not those of the record, or if its data
    cannot be had.

    Args:
        model: Name of the model.
        scored: Its records, of several tasks with the same number of examples.
        folder: Folder of all models.
        data_dir: See `evaluation.tasks.load_task`.

    Raises:
        ConfigError: the name of the model cannot be that of a folder.
        StorageError: the disk is full or the folder cannot be written to.
    """
    from lm_eval.utils import hash_string, sanitize_model_name

    parts: list[dict[str, Any]] = []
    kept: list[Scored] = []
    left_out: list[tuple[Scored, RetbenchError]] = []
    for one in scored:
        try:
            parts.append(_replay(one, data_dir))
            kept.append(one)
        except StorageError:
            raise
        except RetbenchError as error:
            left_out.append((one, error))
    if not kept:
        return Written([], left_out)
    samples = {name: found for part in parts for name, found in part.pop("samples").items()}
    results: dict[str, Any] = {}
    for part in parts:
        for key, by_task in part.items():
            results.setdefault(key, {}).update(by_task)
    ids = {
        name: "".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in found)
        for name, found in samples.items()
    }
    results |= _describe(model, kept)
    results["task_hashes"] = {name: hash_string(text) for name, text in ids.items()}
    latest = max(one.record.started_at for one in kept)
    date = sanitize_model_name(latest.replace(":", "-").removesuffix("Z"))
    place = inside(folder, sanitize_model_name(model))
    place.mkdir(parents=True, exist_ok=True)
    files = {place / f"results_{date}.json": _json(results, indent=2)} | {
        place / f"samples_{name}_{date}.jsonl": "".join(f"{_json(_as_stored(one))}\n" for one in found)
        for name, found in samples.items()
    }
    for path, text in files.items():
        write_atomic(path, text.encode())
    return Written(list(files), left_out)


def _replay(scored: Scored, data_dir: Path | None) -> dict[str, Any]:
    """Return lm-eval's results of a record, with samples and the record's standard errors.

    Raises:
        RecordError: documents are damaged, or the task's data or lm-eval are not those of the record.
        ConfigError: the task's files cannot be read, or a tokenizer that prompts are generated for.
        UnsupportedError: the task's data cannot be obtained.
    """
    record = scored.record
    assert record.documents is not None
    rows = read_documents(scored.folder, record.documents)
    loaded = _load_task(record, data_dir)
    answers = RecordedAnswers({row["doc_id"]: row for row in rows})
    try:
        found = lm_eval_results(answers, loaded, limit=len(rows))
    except RecordError as error:
        raise _other_data(record, str(error)) from error
    samples = found["samples"][loaded.entry.name]
    if len(samples) != len(rows):
        raise _other_data(record, f"there are {len(samples):,} documents, and {len(rows):,} were scored")
    for sample, row in zip(samples, rows, strict=True):
        for name in ("doc_hash", "prompt_hash"):
            if sample[name] != row[name]:
                raise _other_data(record, f"document {row['doc_id']} has another {name}")
    scores = found["results"][loaded.entry.name]
    for metric in [name.partition(",")[0] for name in scores if name.endswith(",none")]:
        if (stderr := record.metrics.get(f"{metric}_stderr")) is not None:
            scores[f"{metric}_stderr,none"] = stderr.value
    return found


def _load_task(record: Record, data_dir: Path | None) -> LoadedTask:
    """Load the task of a record, with the tokenizer of its model if the prompts are generated for one."""
    point, tokenizer = record.point, None
    num_fewshot = point.num_fewshot or 0
    if find_task(point.task or "", num_fewshot).is_generated:
        expected = record.settings.get("tokenizer_fingerprint")
        tokenizer = load_tokenizer(str(record.settings.get("tokenizer")), data_dir=data_dir)
        if tokenizer.fingerprint != expected:
            raise RecordError(
                f"its prompts were generated for a tokenizer of fingerprint {expected}, and "
                f"{shown(tokenizer.name)} has {tokenizer.fingerprint}. Restore the tokenizer's files."
            )
    return load_task(
        point.task or "",
        data_dir=data_dir,
        num_fewshot=num_fewshot,
        seed=int(record.backend.get("fewshot_seed", FEWSHOT_SEED)),
        tokenizer=tokenizer,
        context_len=point.context_len,
    )


def _other_data(record: Record, reason: str) -> RecordError:
    """Return the error for a record whose documents or prompts are not those here."""
    is_generated = record.backend.get("data_source") == "generated"
    origin = (
        "Install the wonderwords of that run"
        if is_generated
        else "Give the folder of those data (--data-dir)"
    )
    return RecordError(
        f"the data here are not those that were scored: {reason}. "
        f"{origin}, and use lm-eval {record.backend.get('lm_eval_version')}."
    )


def _describe(model: str, scored: Sequence[Scored]) -> dict[str, Any]:
    """Return the fields of lm-eval's results that are about the model and the run."""
    from lm_eval.utils import sanitize_model_name

    record = scored[0].record
    weights = record.model.weights
    return {
        "config": {
            "model": "retbench",
            "model_args": {
                "name": record.model.name,
                "size": record.model.size,
                "architecture": record.model.architecture,
                **({"pretrained": weights.source, "revision": weights.revision} if weights else {}),
            },
            "model_num_parameters": record.model.num_params,
            "model_dtype": record.settings.get("dtype"),
            "device": record.settings.get("device"),
            "fewshot_seed": record.backend.get("fewshot_seed"),
        },
        "lm_eval_version": record.backend.get("lm_eval_version"),
        "max_length": record.point.context_len,
        "model_source": "retbench",
        "model_name": model,
        "model_name_sanitized": sanitize_model_name(model),
    }


def _as_stored(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sample as lm-eval stores it: numbers of answers as text, arguments by name."""
    from lm_eval.utils import sanitize_list

    arguments = {
        f"gen_args_{index}": {f"arg_{place}": value for place, value in enumerate(one)}
        for index, one in enumerate(sample["arguments"])
    }
    return {
        **sample,
        "resps": sanitize_list(sample["resps"]),
        "filtered_resps": sanitize_list(sample["filtered_resps"]),
        "arguments": arguments,
        "target": str(sample["target"]),
    }


def _json(value: Mapping[str, Any], indent: int | None = None) -> str:
    """Return JSON as lm-eval writes it."""
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, indent=indent)
