"""Examples of copying, induction and selective copying at any length, by (task, split, index); see `synthetic`."""

import numpy as np

from retbench.config.synthetic import NUM_SPECIAL_TOKENS, SHORTEST_COPY, LengthRecall, LengthTaskName
from retbench.data.batches import IGNORED
from retbench.data.synthetic import Array, Words, choose, draw_words

BLANK, COPY, SELECT, TRIGGER = range(NUM_SPECIAL_TOKENS)
"""Tokens that are no symbols."""


def make_length_examples(
    settings: LengthRecall, split: str, task: LengthTaskName, seq_len: int, *, start: int, count: int
) -> tuple[Array, Array]:
    """Return the examples start .. start + count - 1 of a split.

    Symbols are drawn uniformly, with repeats. In the split `train` strings to copy have any length that fits, as in
    Jelassi et al.; in every other split they fill the example.

    Args:
        settings: Settings of the examples.
        split: Name of the split; two splits have different examples.
        task: The task.
        seq_len: Tokens of an example.
        start: Index of the first example, 0 or more.
        count: Number of examples.

    Returns:
        Inputs and targets, (count, seq_len) int64; a target is IGNORED where nothing is asked.

    Raises:
        ValueError: such examples cannot be made; see `LengthRecall.check`.
    """
    settings.check(task, seq_len)
    name = f"{settings.fingerprint} {split} {task} {seq_len}"
    match task:
        case "copy":
            longest = seq_len // 2
            words = draw_words(name, start, count, 1 + longest)
            lengths = np.full(count, longest)
            if split == "train":
                lengths = SHORTEST_COPY + _below(longest - SHORTEST_COPY + 1, words[:, 0])
            return place_copy(_symbols(settings, words[:, 1 : 1 + longest]), lengths, seq_len)
        case "induction":
            words = draw_words(name, start, count, 1 + seq_len)
            return place_induction(
                _symbols(settings, words[:, 1 : 1 + seq_len]), _below(seq_len - 2, words[:, 0])
            )
        case "selective_copy":
            num = settings.num_selected
            words = draw_words(name, start, count, 2 * num)
            places = np.sort(choose(seq_len - num, words[:, :num]), axis=1)
            return place_selection(_symbols(settings, words[:, num : 2 * num]), places, seq_len)


def place_copy(symbols: Array, lengths: Array, seq_len: int) -> tuple[Array, Array]:
    """Return inputs and targets (B, T) of strings: the string, COPY, and the string again, each symbol to be predicted.

    Blanks follow. The answers stand in the input after they were asked for, as they do when a model generates them: all
    answers are right if and only if greedy generation copies the string.

    Args:
        symbols: (B, n).
        lengths: Number of symbols of each string, at most n, (B,).
        seq_len: Tokens of an example, at least 2n.

    Source:
        Jelassi et al. (arXiv:2402.01032), Section 4.1.
    """
    inputs, targets = _empty(len(symbols), seq_len)
    rows, at = np.nonzero(np.arange(symbols.shape[1]) < lengths[:, None])
    ends, found = lengths[rows], symbols[rows, at]
    inputs[rows, at] = found
    targets[rows, ends + at] = found
    inputs[np.arange(len(symbols)), lengths] = COPY
    shown = at < ends - 1
    inputs[rows[shown], ends[shown] + 1 + at[shown]] = found[shown]
    return inputs, targets


def place_induction(symbols: Array, places: Array) -> tuple[Array, Array]:
    """Return inputs and targets (B, T): TRIGGER stands at a place and at the end, and asks for what followed it.

    Args:
        symbols: Symbols at all other places, (B, T).
        places: Place of the first TRIGGER, at most T - 3, (B,).

    Source:
        Mamba (arXiv:2312.00752), Section 4.1.2.
    """
    inputs, targets = symbols.copy(), np.full(symbols.shape, IGNORED, dtype=np.int64)
    rows = np.arange(len(symbols))
    inputs[rows, places] = TRIGGER
    inputs[:, -1] = TRIGGER
    targets[:, -1] = symbols[rows, places + 1]
    return inputs, targets


def place_selection(symbols: Array, places: Array, seq_len: int) -> tuple[Array, Array]:
    """Return inputs and targets (B, T) of symbols among blanks, which as many SELECT at the end ask for in their order.

    Args:
        symbols: (B, n).
        places: Their places, rising and less than T - n, (B, n).
        seq_len: Tokens of an example.

    Source:
        Mamba (arXiv:2312.00752), Section 4.1.1.
    """
    inputs, targets = _empty(len(symbols), seq_len)
    num = symbols.shape[1]
    np.put_along_axis(inputs, places, symbols, axis=1)
    inputs[:, -num:] = SELECT
    targets[:, -num:] = symbols
    return inputs, targets


def _empty(count: int, seq_len: int) -> tuple[Array, Array]:
    """Return blanks, and targets where nothing is asked."""
    return (
        np.full((count, seq_len), BLANK, dtype=np.int64),
        np.full((count, seq_len), IGNORED, dtype=np.int64),
    )


def _symbols(settings: LengthRecall, words: Words) -> Array:
    return NUM_SPECIAL_TOKENS + _below(settings.num_symbols, words)


def _below(bound: int, words: Words) -> Array:
    """Return a number from 0 to bound - 1 for each word."""
    return (words % np.uint64(bound)).astype(np.int64)
