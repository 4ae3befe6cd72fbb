"""Examples to train on: prompts of the haystack `short` in bytes, with their answers; see `needle_prompts`."""

from itertools import accumulate, takewhile

import numpy as np

from retbench.data.batches import IGNORED
from retbench.data.needle_prompts import SHORT, compose, make_needle, short_sentences, wording_of
from retbench.data.synthetic import Array, draw_words
from retbench.data.tokenizers import ByteTokenizer, prefix_token

_SHORTEST_SENTENCE = 12
"""Bytes of the shortest sentence of the haystack, with its separator."""


def make_needle_examples(split: str, seq_len: int, *, start: int, count: int) -> tuple[Array, Array]:
    """Return the examples start .. start + count - 1 of a split.

    An example is the token that begins a text, a prompt, its answer and the end of the line, and zeros. The answer and
    the end of the line are asked for. A needle has any depth. In the split `train` a haystack has any length that fits;
    in every other split it fills the example.

    Args:
        split: Name of the split; no split has the examples of the workload `needle`, whose split is `test`.
        seq_len: Tokens of an example, 29 or more.
        start: Index of the first example, 0 or more.
        count: Number of examples.

    Returns:
        Inputs and targets, (count, seq_len) int64; a target is IGNORED where nothing is asked.
    """
    inputs = np.zeros((count, seq_len), dtype=np.int64)
    targets = np.full((count, seq_len), IGNORED, dtype=np.int64)
    tokenizer = ByteTokenizer()
    prefix = prefix_token(tokenizer)
    for row in range(count):
        prompt, answer = _example(split, seq_len, start + row)
        tokens = [prefix, *tokenizer.encode(prompt + answer)]
        asked = slice(len(tokens) - 1 - len(answer), len(tokens) - 1)
        inputs[row, : len(tokens) - 1] = tokens[:-1]
        targets[row, asked] = tokens[-len(answer) :]
    return inputs, targets


def _example(split: str, seq_len: int, index: int) -> tuple[str, str]:
    """Return the prompt of an index, and what follows it; both are ASCII, of one byte per character."""
    needle, wording = make_needle(SHORT, index, split), wording_of(SHORT)
    answer = f" {needle.value}\n"
    of_length, of_depth = draw_words(f"needle example {split} {seq_len}", index, 1, 2)[0].tolist()[:2]
    room = seq_len - len(compose(needle, [], wording, 0.0)) - len(answer)
    if split == "train":
        room = of_length % (room + 1)
    sentences = short_sentences(index, 1 + room // _SHORTEST_SENTENCE, split)
    lengths = accumulate(len(wording.separator) + len(sentence) for sentence in sentences)
    num_sentences = sum(1 for _ in takewhile(lambda length: length <= room, lengths))
    place = of_depth % (num_sentences + 1)
    depth = place / num_sentences if num_sentences else 0.0
    return compose(needle, sentences[:num_sentences], wording, depth), answer
