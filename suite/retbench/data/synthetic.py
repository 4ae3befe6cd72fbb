"""Generated examples of multi-query associative recall, as a pure function of (task, split, index).

Every random number is a word of the counter-based generator Philox, whose key is a hash of the task and the split and
whose counter is the index. All arithmetic is on integers, so the examples are the same bit for bit on every machine and
with every version of numpy and torch: a test set is a hash.
"""

import hashlib
from collections.abc import Sequence
from decimal import Context, Decimal
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from retbench.config.synthetic import Mqar
from retbench.data.batches import IGNORED

Array = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_BLOCK = 4
"""64-bit words that Philox yields per count."""


def make_examples(
    task: Mqar, split: str, num_pairs: int, seq_len: int, *, start: int, count: int
) -> tuple[Array, Array]:
    """Return the examples start .. start + count - 1 of a split.

    An example opens with `num_pairs` keys, each followed by its value. Then each key is asked once: it stands at the
    first of two tokens, and the target at its own position is its value, which the input does not show again.

    Args:
        task: Settings of the examples.
        split: Name of the split; two splits have different examples.
        num_pairs: Pairs of an example.
        seq_len: Tokens of an example.
        start: Index of the first example, 0 or more.
        count: Number of examples.

    Returns:
        Inputs and targets, (count, seq_len) int64; a target is IGNORED where nothing is asked.

    Raises:
        ValueError: such examples cannot be made; see `Mqar.check`.

    Source:
        Zoology (arXiv:2312.04927), `multiquery_ar` of github.com/HazyResearch/zoology.
    """
    task.check(num_pairs, seq_len)
    filler_words = seq_len if task.random_filler else 0
    words = draw_words(
        f"{task.fingerprint} {split} {num_pairs} {seq_len}", start, count, 3 * num_pairs + filler_words
    )
    of_keys, of_values, of_slots, of_filler = np.split(
        words, [num_pairs * part for part in (1, 2, 3)], axis=1
    )
    half = task.vocab_size // 2
    keys = 1 + choose(half - 1, of_keys)
    values = half + choose(task.vocab_size - half, of_values)
    slots = _choose_weighted(_slot_weights(seq_len // 2 - num_pairs, task.power), of_slots)
    inputs, targets = place(keys, values, slots, seq_len)
    if task.random_filler:
        filler = (of_filler[:, :seq_len] % np.uint64(task.vocab_size)).astype(np.int64)
        inputs = np.where(inputs == 0, filler, inputs)
    return inputs, targets


def place(keys: Array, values: Array, slots: Array, seq_len: int) -> tuple[Array, Array]:
    """Return inputs and targets (B, T) of keys, values and the slots in which each key is asked, all (B, n).

    Slot s is the tokens 2n + 2s and 2n + 2s + 1.
    """
    count, num_pairs = keys.shape
    inputs = np.zeros((count, seq_len), dtype=np.int64)
    targets = np.full((count, seq_len), IGNORED, dtype=np.int64)
    inputs[:, 0 : 2 * num_pairs : 2] = keys
    inputs[:, 1 : 2 * num_pairs : 2] = values
    positions = 2 * num_pairs + 2 * slots
    np.put_along_axis(inputs, positions, keys, axis=1)
    np.put_along_axis(targets, positions, values, axis=1)
    return inputs, targets


def pair_distances(inputs: Array, targets: Array, num_pairs: int) -> Array:
    """Return how many tokens before each question its key stands among the pairs, (B, T); 0 where nothing is asked.

    Args:
        inputs: From `make_examples`, (B, T).
        targets: From `make_examples`, (B, T).
        num_pairs: Pairs of an example.
    """
    distances = np.zeros_like(inputs)
    rows, places = np.nonzero(targets != IGNORED)
    keys = inputs[rows, 0 : 2 * num_pairs : 2]
    distances[rows, places] = places - 2 * (keys == inputs[rows, places][:, None]).argmax(axis=1)
    return distances


def draw_words(name: str, start: int, count: int, num_words: int) -> Words:
    """Return at least `num_words` random words for each index from `start` on, (count, words)."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    blocks = -(-num_words // _BLOCK)
    generator = np.random.Philox(key=key, counter=start * blocks)
    return generator.random_raw(count * blocks * _BLOCK).reshape(count, blocks * _BLOCK)


def choose(num_items: int, words: Words) -> Array:
    """Draw from range(num_items) without replacement, by one word for each draw, (B, n); return the draws, (B, n)."""
    items = np.tile(np.arange(num_items), (len(words), 1))
    rows = np.arange(len(words))
    for draw in range(words.shape[1]):
        found = draw + (words[:, draw] % np.uint64(num_items - draw)).astype(np.int64)
        items[rows, found], items[:, draw] = items[:, draw].copy(), items[rows, found]
    return items[:, : words.shape[1]]


def _choose_weighted(weights: Sequence[int], words: Words) -> Array:
    """Draw items without replacement, each in proportion to its weight among those that are left.

    Args:
        weights: Weight of each item, 1 or more.
        words: One word for each draw, (B, n).

    Returns:
        The drawn items in the order of the draws, (B, n).
    """
    left = np.tile(np.array(weights, dtype=np.uint64), (len(words), 1))
    rows, chosen = np.arange(len(words)), np.empty(words.shape, dtype=np.int64)
    for draw in range(words.shape[1]):
        ends = left.cumsum(axis=1, dtype=np.uint64)
        mark = words[:, draw] % ends[:, -1]
        chosen[:, draw] = (ends <= mark[:, None]).sum(axis=1)
        left[rows, chosen[:, draw]] = 0
    return chosen


@lru_cache(maxsize=64)
def _slot_weights(num_slots: int, power: float) -> tuple[int, ...]:
    """Return x^(power - 1) for x = 1 .. num_slots in units of 2^-32.

    Decimal arithmetic rounds the same on every machine, which a floating-point power does not.
    """
    context, exponent = Context(prec=28), Decimal(repr(power)) - 1
    return tuple(
        max(1, int(context.power(Decimal(slot), exponent) * 2**32)) for slot in range(1, num_slots + 1)
    )


def fingerprint_examples(inputs: Array, targets: Array) -> str:
    """Return 12 hex digits over examples, which identify a test set."""
    return hashlib.sha256(inputs.astype("<i8").tobytes() + targets.astype("<i8").tobytes()).hexdigest()[:12]
