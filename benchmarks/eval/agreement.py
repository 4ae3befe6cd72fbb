"""Bars on agreement: scores of each document by our scorer and by lm-eval's HFLM, from the same trained weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.eval.hf_lm import build_hf_lm
from benchmarks.peers.outcomes import FP32_LIMIT, Limit, Outcome, error_outcome
from retbench.checkpoints.loading import load_checkpoint
from retbench.data.data_folder import data_folder
from retbench.data.tokenizers import Tokenizer, load_tokenizer
from retbench.errors import UnsupportedError
from retbench.evaluation.lm import DecoderLM
from retbench.evaluation.tasks import load_task
from retbench.evaluation.zeroshot import run_lm_eval
from retbench.models.build import build_model
from retbench.models.decoder import Decoder

MAX_LENGTH = 512
"""Context length of the trained model; the start of a longer context is cut off on both sides."""
HF_BATCH = 16
ROUNDING = 2
"""A document is not decided in float32 if its two best scores differ by at most this many times the rounding error."""
BITS_LIMIT = 1e-4

Sample = Mapping[str, Any]
"""One document of lm-eval's samples."""


def trained_model() -> tuple[Decoder, Tokenizer, Path]:
    """Return stories260K, its tokenizer, and the data folder; UnsupportedError if they are not available."""
    folder = data_folder()
    if folder is None or not (folder / "stories260K").is_dir():
        raise UnsupportedError(
            "these bars read the task files and stories260K (llama2.c's trained model of 260K parameters) from the "
            "folder of RETBENCH_DATA. Set it to a folder that contains them."
        )
    model = load_checkpoint(folder / "stories260K", dtype=torch.float32, device="cpu", backend="sdpa")
    return model, load_tokenizer(str(folder / "stories260K" / "tok512.bin")), folder


def agree(task: str, limit: int | None, max_length: int) -> Iterator[Outcome]:
    """Compare log-likelihoods, and every metric by document, on a task's first `limit` documents."""
    ours, theirs = _both(task, limit, max_length)
    bar = f"agree-{task}"
    totals = [
        torch.tensor([x for s in side for x in _totals(s)], dtype=torch.float64) for side in (ours, theirs)
    ]
    yield error_outcome(f"{bar}: log-likelihoods", totals[0], totals[1], FP32_LIMIT)
    for metric in ours[0]["metrics"]:
        if metric != "perplexity":  # for one document it is the log-likelihood itself
            yield _by_document(f"{bar}: {metric}", metric, ours, theirs)


def wikitext() -> Iterator[Outcome]:
    """Compare bits per byte of the whole test set."""
    ours, theirs = _both("wikitext", None, MAX_LENGTH)
    found, expected = _bits_per_byte(ours), _bits_per_byte(theirs)
    error = abs(found - expected)
    yield Outcome(
        "wikitext: bits per byte, difference", found, expected, error, error, error, Limit(high=BITS_LIMIT)
    )


def _bits_per_byte(samples: Sequence[Sample]) -> float:
    """Return bits per byte over all documents."""
    parts = [sample["bits_per_byte"] for sample in samples]  # nats, bytes
    nats = float(sum(total for total, _ in parts))
    num_bytes = int(sum(count for _, count in parts))
    return -nats / num_bytes / math.log(2)


def batched() -> Iterator[Outcome]:
    """Compare batches with shared prefixes with single requests, on a trained Transformer and a random RetNet."""
    from benchmarks.peers import pairs

    model, tokenizer, folder = trained_model()
    retnet = build_model(
        pairs.fla_config("1m"), dtype=torch.float32, device="cpu", seed=0, backend="chunkwise"
    )
    for name, either in {"transformer": model, "retnet": retnet}.items():
        for task, shots in (("hellaswag", 0), ("winogrande", 4)):
            loaded = load_task(task, data_dir=folder, num_fewshot=shots)
            together = DecoderLM(either, tokenizer, max_length=MAX_LENGTH)
            alone = DecoderLM(either, tokenizer, max_length=MAX_LENGTH, batch_tokens=1, min_saved=None)
            sides = []
            for lm in (together, alone):
                loaded.task.set_fewshot_seed(loaded.seed)
                sides.append(run_lm_eval(lm, loaded, limit=50))
            bar = f"batched: {name}, {task} {shots}-shot"
            yield error_outcome(
                f"{bar}, log-likelihoods", _all_totals(sides[0]), _all_totals(sides[1]), FP32_LIMIT
            )
            yield _by_document(f"{bar}, acc", "acc", sides[0], sides[1])


def _both(task: str, limit: int | None, max_length: int) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Return both sides' samples of every document, after checking that the prompts are the same."""
    model, tokenizer, folder = trained_model()
    loaded = load_task(task, data_dir=folder)
    ours = run_lm_eval(DecoderLM(model, tokenizer, max_length=max_length), loaded, limit=limit)
    hf_lm = build_hf_lm(model, tokenizer, max_length=max_length, batch_size=HF_BATCH)
    theirs = run_lm_eval(hf_lm, loaded, limit=limit)
    assert [sample["arguments"] for sample in ours] == [sample["arguments"] for sample in theirs]
    return ours, theirs


def _totals(sample: Sample) -> list[float]:
    """Return the log-likelihood of each request of a document."""
    return [answer[0] for answer in sample["filtered_resps"]]


def _all_totals(samples: Sequence[Sample]) -> torch.Tensor:
    """Return the log-likelihood of every request, float64."""
    return torch.tensor([total for sample in samples for total in _totals(sample)], dtype=torch.float64)


def _by_document(bar: str, metric: str, ours: Sequence[Sample], theirs: Sequence[Sample]) -> Outcome:
    """Count the documents that differ in a metric and are decided in float32; the note names all that differ."""
    differing = [(o, t) for o, t in zip(ours, theirs, strict=True) if o[metric] != t[metric]]
    close = [o["doc_id"] for o, t in differing if _is_close(metric, o, t)]
    wrong = [o["doc_id"] for o, t in differing if not _is_close(metric, o, t)]
    found, expected = (sum(sample[metric] for sample in side) / len(side) for side in (ours, theirs))
    notes = [f"{len(ours)} documents"]
    notes += [f"not decided in float32: {close}"] if close else []
    notes += [f"differ: {wrong}"] if wrong else []
    count = float(len(wrong))
    return Outcome(bar, found, expected, count, count, count, Limit(high=0.0), "; ".join(notes))


def _is_close(metric: str, ours: Sample, theirs: Sample) -> bool:
    """Return whether rounding alone may have decided between the two best choices of a document."""
    sides = [_totals(ours), _totals(theirs)]
    if len(sides[0]) < 2:  # a single text is greedy or not: its log-likelihood does not show the margin
        return False
    if metric == "acc_norm":
        choices = [argument[1] for argument in ours["arguments"]]
        # lm-eval divides by the length of the choice without the space before it
        sides = [[x / len(c.removeprefix(" ")) for x, c in zip(side, choices, strict=True)] for side in sides]
    rounding = max(abs(one - other) for one, other in zip(*sides, strict=True))
    best, second = sorted(sides[0], reverse=True)[:2]
    return bool(best - second <= ROUNDING * rounding)
