"""Bars on speed: our and HFLM's log-likelihoods of HellaSwag's first documents, timed alternately on equal weights."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from benchmarks.eval.agreement import trained_model
from benchmarks.eval.hf_lm import build_hf_lm
from benchmarks.peers import pairs
from benchmarks.peers.outcomes import FP32_LIMIT, Limit, Outcome, error_outcome, prove, speed_outcome
from benchmarks.peers.rounds import interleave
from retbench.data.tokenizers import load_tokenizer
from retbench.errors import UnsupportedError
from retbench.evaluation.lm import DecoderLM
from retbench.evaluation.tasks import load_task, quiet
from retbench.measure.clock import time_call

MAX_LENGTH = 2048
HF_BATCHES = (4, 8, 16, 32)
"""Candidates; HFLM is timed with the fastest one in a first trial."""
TRIAL = 96
"""Requests of the trial."""
BOOKS = 12
"""Novels that the tokenizer is trained on."""


@torch.inference_mode()
def hellaswag(rounds: int, documents: int, shots: int, limit: float) -> Iterator[Outcome]:
    """Measure our time over HFLM's, tokenization included, after checking that the log-likelihoods are equal.

    The model is size 25m with random weights, the tokenizer a byte-level BPE of its vocabulary's size, trained
    on novels and read by the same library on both sides.
    """
    _, _, folder = trained_model()
    config = pairs.llama_config()
    model = pairs.plain(config)
    requests = _requests(folder, documents, shots)
    with tempfile.TemporaryDirectory() as place:
        file = str(Path(place) / "tokenizer.json")
        _make_tokenizer(folder, config.vocab_size, file)
        tokenizer = load_tokenizer(file)
        build = partial(build_hf_lm, model, tokenizer, max_length=MAX_LENGTH, fast_file=file)
        theirs, batch_size = _fastest(build, requests[:TRIAL])

    def ours() -> LM:
        """Build a new one for each call, because it caches the texts that it has encoded."""
        return DecoderLM(model, tokenizer, max_length=MAX_LENGTH)

    name = f"speed-hellaswag-{shots}-shot" if shots else "speed-hellaswag"
    found, expected = (_answer(lm, requests) for lm in (ours(), theirs))
    totals = [torch.tensor([answer[0] for answer in side], dtype=torch.float64) for side in (found, expected)]
    proof = error_outcome(f"{name}: equality, log-likelihoods", totals[0], totals[1], FP32_LIMIT)
    if not (yield from prove([proof])):
        return
    print(f"  HFLM's batch size: {batch_size}", file=sys.stderr)
    times = interleave(
        {
            "ours": lambda: time_call(lambda: _answer(ours(), requests)),
            "theirs": lambda: time_call(lambda: _answer(theirs, requests)),
        },
        rounds,
    )
    yield speed_outcome(f"{name}: ours over HFLM's", times["ours"], times["theirs"], Limit(high=limit))


def _requests(folder: Path, documents: int, shots: int) -> list[Instance]:
    """Return the requests of lm-eval."""
    loaded = load_task("hellaswag", data_dir=folder, num_fewshot=shots)
    with quiet():
        loaded.task.build_all_requests(limit=documents)
    found: list[Instance] = loaded.task.instances
    return found


def _answer(lm: LM, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
    """Return every log-likelihood, without a progress bar."""
    found: list[tuple[float, bool]] = lm.loglikelihood(requests, disable_tqdm=True)
    return found


def _fastest(build: Any, requests: Sequence[Instance]) -> tuple[LM, int]:
    """Return HFLM with the batch size that is fastest on a few requests."""
    sides = {batch_size: build(batch_size=batch_size) for batch_size in HF_BATCHES}
    _answer(sides[HF_BATCHES[0]], requests)  # warms up
    times = {size: time_call(partial(_answer, lm, requests)) for size, lm in sides.items()}
    best = min(times, key=lambda size: times[size])
    return sides[best], best


def _make_tokenizer(folder: Path, vocab_size: int, file: str) -> None:
    """Train a byte-level BPE like GPT-2's with a small vocabulary; UnsupportedError without the novels."""
    books = sorted(str(path) for path in (folder / "classic_books").rglob("*.md"))[:BOOKS]
    if len(books) < BOOKS:
        raise UnsupportedError(f"{folder / 'classic_books'}: {BOOKS} novels are needed to train a tokenizer.")
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train(books, trainer)
    tokenizer.save(file)
