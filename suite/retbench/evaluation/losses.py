"""Negative log-likelihoods of tokens, in float32 whatever the model's dtype.

Nothing is padded: a retention state has no mask, and a token that is not there must not enter it.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from retbench.architectures.costs import PREFILL_SEGMENT
from retbench.evaluation.progress import Report, tell_nobody
from retbench.models.decoder import Decoder

BATCH_TOKENS = 8192
"""Tokens of windows that are read side by side, at most, unless one window alone has more."""


@torch.inference_mode()
def streamed_losses(
    model: Decoder, tokens: Tensor, *, segment_len: int = PREFILL_SEGMENT, report: Report = tell_nobody
) -> Tensor:
    """Losses of every token but the first, each given all before it.

    The text goes through the model in segments that leave their state to the next. What is held is the state and one
    segment: for retention the same at any length, for attention a cache of all tokens.

    Args:
        model: The model.
        tokens: (B, T) int64, each row a text of its own.
        segment_len: Tokens of a segment.
        report: Told of every segment.

    Returns:
        (B, T - 1) float32 on the CPU, in nats: [:, i] is that of token i + 1.
    """
    batch_size, length = tokens.shape
    state = model.init_state(batch_size, length - 1)
    found = torch.empty(batch_size, length - 1)
    for start in range(0, length - 1, segment_len):
        end = min(start + segment_len, length - 1)
        logits = model(tokens[:, start:end].to(model.device), state)  # (B, S, N)
        targets = tokens[:, start + 1 : end + 1].to(model.device)
        losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")  # (B, S)
        found[:, start:end] = losses.cpu()
        report(targets.numel())
    return found


def windows(length: int, window_len: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows of a text of `length` tokens: where each begins and ends, and how many of its last tokens it scores.

    Every token but the text's first is scored once. A window has `window_len` tokens, the last one maybe fewer; the
    next begins `stride` later.
    """
    scored = 1
    for start in range(0, max(1, length), stride):
        end = min(start + window_len, length)
        if end > scored:
            yield start, end, end - scored
            scored = end
        if end == length:
            return


def strided_losses(
    model: Decoder, tokens: Tensor, *, context_len: int, stride: int, report: Report = tell_nobody
) -> Tensor:
    """Losses of every token but the first of one text, each given what its window has before it.

    Args:
        model: The model.
        tokens: (T,) int64.
        context_len: Tokens that the model sees in a window; the one that follows them is scored too.
        stride: Tokens between the beginnings of two windows.
        report: Told of every pass.

    Returns:
        (T - 1,) float32, in nats.
    """
    found = torch.empty(len(tokens) - 1)
    cut = list(windows(len(tokens), context_len + 1, stride))
    for group in _equally_long(cut):
        rows = torch.stack([tokens[start:end] for start, end, _ in group])
        losses = streamed_losses(model, rows, report=report)
        for (_, end, scored), row in zip(group, losses, strict=True):
            found[end - 1 - scored : end - 1] = row[-scored:]
    return found


def _equally_long(cut: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Neighbouring windows of one length, as many together as `BATCH_TOKENS` allows."""
    group: list[tuple[int, int, int]] = []
    for window in cut:
        length = window[1] - window[0]
        if group and (group[0][1] - group[0][0] != length or (len(group) + 1) * length > BATCH_TOKENS):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def last_losses(
    model: Decoder,
    tokens: Tensor,
    *,
    chunk_len: int,
    context_len: int,
    scored_len: int,
    report: Report = tell_nobody,
) -> Tensor:
    """Losses of the last tokens of each chunk, given the last `context_len` tokens of the chunk, themselves included.

    The protocol of arXiv:2307.08621, Table 8: 2,048-token chunks, of which the last 128 tokens are scored.

    Args:
        model: The model.
        tokens: (T,) int64; what does not fill a chunk is left out.
        chunk_len: Tokens of a chunk.
        context_len: Tokens that the model sees at most, the scored ones included.
        scored_len: Tokens that are scored of each chunk.
        report: Told of every pass.

    Returns:
        (chunks, scored_len) float32, in nats.
    """
    num_chunks = len(tokens) // chunk_len
    rows = tokens[: num_chunks * chunk_len].view(num_chunks, chunk_len)[:, -context_len:]
    together = max(1, BATCH_TOKENS // context_len)
    found = [
        streamed_losses(model, part, report=report)[:, -scored_len:]
        for part in rows.split(together)
        if len(part)
    ]
    return torch.cat(found) if found else torch.empty(0, scored_len)
