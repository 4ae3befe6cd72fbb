"""Log-likelihoods of continuations, with each prefix that requests share computed once.

Requests form a tree by their tokens (`batching`). A shared prefix runs once, and its continuations start from copies of
its state, of any kind. No padding enters a state that is used again: prefixes that run together are cut to the shortest
of them, and their continuations run the rest. A padded row occurs only where the padding follows every scored token and
the state is discarded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retbench.evaluation import PassProgress, ignore_progress
from retbench.evaluation.batching import MIN_SAVED, Branch, build_tree, partition
from retbench.models.language_model import LanguageModel
from retbench.models.state import DecoderState
from retbench.units import GIB

BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of one forward pass, by kind of device."""
PASS_TOKENS = {"cpu": 48, "cuda": 512}
"""Tokens that take as long as the fixed cost of a pass: a CPU reads the weights once, a GPU launches its kernels."""
STATE_BYTES = {"cpu": 2 * GIB, "cuda": 16 * GIB}
"""Maximum bytes of all states of one call, by kind of device; a sequence that needs more runs alone."""
MEMORY_SHARE = 4
"""States take at most one part in so many of a GPU's memory, which weights and activations share."""
LOGITS_AT_ONCE = 2**24
"""Maximum elements of one product with the head, 64 MiB in float32."""


class ScoringRequest(NamedTuple):
    """Tokens to score and the tokens before them; neither is empty."""

    context: Sequence[int]
    continuation: Sequence[int]


class ContinuationScore(NamedTuple):
    """A model's score of a continuation."""

    loglikelihood: float
    """Sum of the log-probabilities of its tokens, nats."""
    is_greedy: bool
    """True if each of its tokens is the most probable one."""


@dataclass(frozen=True)
class ScoringResult:
    """Scores in the order of the requests, and their cost.

    Attributes:
        scores: One per request.
        num_truncated: Requests whose context lost tokens at its start.
        num_input_tokens: Tokens that the model would read without sharing.
        num_computed_tokens: Tokens that it did read, padding included.
    """

    scores: list[ContinuationScore]
    num_truncated: int
    num_input_tokens: int
    num_computed_tokens: int


class _Targets(NamedTuple):
    """The tokens that one pass scores."""

    rows_of_logits: dict[tuple[int, int], int]
    """Row and position in the pass, to a row of logits, which requests with equal tokens share."""
    rows: list[int]
    """Per token, the row of the logits before it."""
    owners: list[int]
    """Per token, its request."""
    tokens: list[int]

    def add(self, position: tuple[int, int], owner: int, token: int) -> None:
        """Add a token after a position of the pass."""
        self.rows.append(self.rows_of_logits.setdefault(position, len(self.rows_of_logits)))
        self.owners.append(owner)
        self.tokens.append(token)


def _most_state_bytes(kind: str, device: torch.device) -> int:
    """Return the bytes that states may take on a device: fewer than `STATE_BYTES` on a small GPU or a slice of one."""
    if device.type != "cuda":
        return STATE_BYTES[kind]
    return min(STATE_BYTES[kind], torch.cuda.get_device_properties(device).total_memory // MEMORY_SHARE)


class Scorer:
    """Scores requests with one model.

    Args:
        model: The model.
        max_length: Tokens of a request that the model reads: the last ones, as in lm-eval.
        batch_tokens: Tokens of one forward pass; a longer sequence runs alone. None: by device.
        state_bytes: See STATE_BYTES. None: by device.
        min_saved: See `batching.build_tree`. None: share nothing.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        max_length: int,
        batch_tokens: int | None = None,
        state_bytes: int | None = None,
        min_saved: int | None = MIN_SAVED,
    ) -> None:
        self.model = model
        self.max_length = max_length
        kind = model.device.type if model.device.type in BATCH_TOKENS else "cuda"
        self.batch_tokens = batch_tokens or BATCH_TOKENS[kind]
        self.state_bytes = state_bytes or _most_state_bytes(kind, model.device)
        self.pass_tokens = PASS_TOKENS[kind]
        self.min_saved = min_saved

    @torch.inference_mode()
    def score(
        self, requests: Sequence[ScoringRequest], report: PassProgress = ignore_progress
    ) -> ScoringResult:
        """Score every request, calling `report` after every pass."""
        for request in requests:
            assert request.context
            assert 0 < len(request.continuation) <= self.max_length
        whole = [[*request.context, *request.continuation] for request in requests]
        kept = [tokens[-(self.max_length + 1) :] for tokens in whole]
        inputs = [tokens[:-1] for tokens in kept]
        tree = (
            [Branch(len(tokens), [index]) for index, tokens in enumerate(inputs)]
            if self.min_saved is None
            else build_tree(inputs, min_saved=self.min_saved)
        )
        self._kept, self._report = kept, report
        self._first_scored = [
            len(tokens) - len(r.continuation) for tokens, r in zip(kept, requests, strict=True)
        ]
        self._sums = torch.zeros(len(kept), dtype=torch.float64)
        self._misses = torch.zeros(len(kept), dtype=torch.int64)
        self._num_computed = 0
        self._held_bytes = 0  # of the states from which the current branches start
        self._run(tree, None, [0] * len(tree), 0)
        scores = zip(self._sums.tolist(), self._misses.tolist(), strict=True)
        return ScoringResult(
            [ContinuationScore(total, missed == 0) for total, missed in scores],
            sum(len(all_) > len(some) for all_, some in zip(whole, kept, strict=True)),
            sum(map(len, inputs)),
            self._num_computed,
        )

    def _run(
        self, branches: Sequence[Branch], state: DecoderState | None, rows: Sequence[int], start: int
    ) -> None:
        """Run branches from token `start` on.

        Args:
            branches: Branches to run.
            state: State after `start` tokens, one row per prefix, left unchanged; None if `start` is 0.
            rows: Row of the state from which each branch starts.
            start: Tokens already run.
        """
        ongoing = list(zip(branches, rows, strict=True))
        leaves = [pair for pair in ongoing if not pair[0].children]
        shared = [pair for pair in ongoing if pair[0].children]
        for batch in self._batches([pair for pair in leaves if pair[0].end > start], start, longest=True):
            self._pass(batch, state, start, max(branch.end for branch, _ in batch), keep=False)
        for batch in self._batches(shared, start, longest=False):
            end = min(branch.end for branch, _ in batch)
            advanced = self._pass(batch, state, start, end, keep=True)
            assert advanced is not None
            children = [(child, row) for row, (branch, _) in enumerate(batch) for child in branch.children]
            self._held_bytes += advanced.num_bytes
            self._run([child for child, _ in children], advanced, [row for _, row in children], end)
            self._held_bytes -= advanced.num_bytes

    def _batches(
        self, pairs: Sequence[tuple[Branch, int]], start: int, *, longest: bool
    ) -> Iterator[list[tuple[Branch, int]]]:
        """Yield branches that run together, padded to the longest of them or cut to the shortest."""
        ordered = sorted(pairs, key=lambda pair: pair[0].end, reverse=longest)
        branches = [branch for branch, _ in ordered]
        for first, last in partition(
            [branch.end - start for branch in branches],
            [0 if longest else branch.num_leaves for branch in branches],
            fits=lambda rows, length: self._fits(rows, start, length, keep=not longest),
            pass_tokens=self.pass_tokens,
        ):
            yield ordered[first:last]

    def _fits(self, rows: int, start: int, length: int, *, keep: bool) -> bool:
        """Return True if a pass stays within the limits on tokens and on the bytes of its states.

        States that are kept take half of the remaining bytes, to leave the other half to their branches' states.
        """
        own = self.model.state_bytes(rows, start + length)
        room = self.state_bytes - self._held_bytes
        return rows * length <= self.batch_tokens and own <= (room // 2 if keep else room)

    def _pass(
        self,
        batch: Sequence[tuple[Branch, int]],
        state: DecoderState | None,
        start: int,
        end: int,
        *,
        keep: bool,
    ) -> DecoderState | None:
        """Run the tokens start .. end - 1 of each branch, score those after them, and return the state to keep."""
        width = end - start
        tokens = [list(self._kept[branch.members[0]][start : min(end, branch.end)]) for branch, _ in batch]
        padded = torch.tensor([row + [0] * (width - len(row)) for row in tokens], device=self.model.device)
        self._num_computed += padded.numel()
        advanced = self._copied(batch, state, end) if keep or state is not None else None
        targets = self._targets(batch, start, end)
        last_only = all(position == width - 1 for _, position in targets.rows_of_logits)
        features = self.model.features(padded, advanced, last_only=last_only)  # (B, T or 1, D)
        if targets.tokens:
            self._score(features, targets)
        self._report(padded.numel())
        return advanced if keep else None

    def _copied(
        self, batch: Sequence[tuple[Branch, int]], state: DecoderState | None, capacity: int
    ) -> DecoderState:
        """Return a separate state for each branch, with room for `capacity` tokens."""
        if state is None:
            return self.model.init_state(len(batch), capacity)
        rows = torch.tensor([row for _, row in batch], device=self.model.device)
        return state.gather(rows, capacity)

    def _targets(self, batch: Sequence[tuple[Branch, int]], start: int, end: int) -> _Targets:
        """Collect the tokens to score after the positions start .. end - 1 of each branch."""
        targets = _Targets({}, [], [], [])
        for row, (branch, _) in enumerate(batch):
            for member in branch.members:
                kept = self._kept[member]
                for position in range(max(start, self._first_scored[member] - 1), min(end, branch.end)):
                    targets.add((row, position - start), member, kept[position + 1])
        return targets

    def _score(self, features: Tensor, targets: _Targets) -> None:
        """Add the scores of the target tokens, given features (B, T or 1, D)."""
        index = torch.tensor(list(targets.rows_of_logits), device=features.device)
        positions = index[:, 1] if features.shape[1] > 1 else 0
        chosen = features[index[:, 0], positions]  # (M, D)
        rows, tokens, owners = (
            torch.tensor(column) for column in (targets.rows, targets.tokens, targets.owners)
        )
        values, is_likeliest = self._log_probabilities(chosen, rows, tokens)
        self._sums.index_add_(0, owners, values)
        self._misses.index_add_(0, owners, (~is_likeliest).to(torch.int64))

    def _log_probabilities(self, chosen: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each target, float64, and if it is the most probable token.

        `rows` gives the target's row of `chosen` (M, D).
        """
        values = torch.empty(len(targets), dtype=torch.float64)
        likeliest = torch.empty(len(targets), dtype=torch.bool)
        step = max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)
        for first in range(0, len(chosen), step):
            logits = self.model.logits_of(chosen[first : first + step])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            found = ((rows >= first) & (rows < first + step)).nonzero().flatten()
            of_slice = (rows[found] - first).to(logits.device)
            wanted = targets[found].to(logits.device)
            log_probabilities = logits[of_slice, wanted] - logits.logsumexp(dim=-1)[of_slice]
            values[found] = log_probabilities.double().cpu()
            likeliest[found] = (logits.argmax(dim=-1)[of_slice] == wanted).cpu()
        return values, likeliest
