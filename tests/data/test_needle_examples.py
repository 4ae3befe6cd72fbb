"""Needles to train on: equal on every machine, at any depth and length that fits, and asked as the workload asks."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.config.synthetic import SHORTEST_NEEDLE, NeedleTask
from retbench.data.batches import IGNORED
from retbench.data.needle_examples import make_needle_examples
from retbench.data.needle_prompts import SHORT, haystack_sentences, make_needle, make_prompt
from retbench.data.synthetic import Array, fingerprint_examples
from retbench.data.task_batches import SyntheticBatches, mixed_examples
from retbench.data.tokenizers import load_tokenizer

BYTES = load_tokenizer("bytes")
TASK = NeedleTask(name="needle")


def texts(inputs: Array, targets: Array) -> list[tuple[str, str]]:
    """Return the prompt and the answer of each example, as they are read from its tokens."""
    found = []
    for tokens, asked in zip(inputs, targets, strict=True):
        (places,) = (asked != IGNORED).nonzero()
        assert places.tolist() == list(range(places[0], places[-1] + 1))
        assert tokens[0] == 256
        assert not tokens[places[-1] + 1 :].any()
        assert tokens[places[1:]].tolist() == asked[places[:-1]].tolist()
        prompt, answer = bytes(tokens[1 : places[0] + 1].tolist()), bytes(asked[places].tolist())
        found.append((prompt.decode(), answer.decode()))
    return found


@given(st.sampled_from(["train", "validation"]), st.integers(SHORTEST_NEEDLE, 200), st.integers(0, 2**60))
def test_the_answer_stands_in_the_text_at_the_key_that_is_asked(split: str, seq_len: int, index: int) -> None:
    ((prompt, answer),) = texts(*make_needle_examples(split, seq_len, start=index, count=1))
    text, _, key = prompt.rpartition("\n")
    needle = make_needle(SHORT, index, split)
    assert key == f"{needle.key}:"
    assert answer == f" {needle.value}\n"
    assert text.count(f"{needle.key}: {needle.value}.") == 1
    rest = text.replace(needle.statement, "")
    assert not any(character.isdigit() for character in rest)


def test_examples_are_the_same_on_every_machine() -> None:
    made = make_needle_examples("train", 96, start=0, count=64)
    assert fingerprint_examples(*made) == "2354cc8124e5"
    assert TASK.fingerprint == "5e3570d39dbe"


def test_training_has_every_length_and_depth_and_validation_fills_the_example() -> None:
    for split, shortest in (("train", 18), ("validation", 96 - 24)):
        inputs, targets = make_needle_examples(split, 96, start=5, count=300)
        lengths = (inputs != 0).sum(1)
        assert shortest <= lengths.min() < lengths.max() <= 96
        places = [prompt.index(":") / len(prompt) for prompt, _ in texts(inputs, targets)]
        assert min(places) < 0.2 < 0.7 < max(places)


def test_splits_and_seeds_share_no_needle() -> None:
    values = {
        name: {make_needle(SHORT, index, split).value for index in indices}
        for name, split, indices in [
            ("train", "train", range(20)),
            ("validation", "validation", range(20)),
            ("test", "test", range(20)),
        ]
    }
    assert len({frozenset(each) for each in values.values()}) == 3
    batches = [SyntheticBatches(TASK, batch_size=4, seq_len=48, seed=seed) for seed in (0, 1)]
    assert not (batches[0].examples(0).inputs == batches[1].examples(0).inputs).all(1).any()
    assert batches[0].num_targets(0) == 4 * 5


def test_the_workload_asks_as_the_training_did() -> None:
    prompt = make_prompt(BYTES, haystack_sentences(SHORT, None), SHORT, 3, depth=0.5, num_tokens=95)
    assert prompt.text.endswith(f"\n{prompt.needle.key}:")
    assert bytes(prompt.answers[0]).decode() == f" {prompt.needle.value}"
    assert len(prompt.needle.value) == 3
    digest = hashlib.sha256(prompt.text.encode()).hexdigest()[:12]
    assert digest == "089be7697211"


def test_a_guess_has_the_best_accuracy_of_one_fixed_answer() -> None:
    answers = [f" {value}\n" for value in range(100, 1000)]
    best = [max(Counter(column).values()) / len(answers) for column in zip(*answers, strict=True)]
    assert TASK.guess_accuracy == pytest.approx(sum(best) / len(best))
    drawn = {make_needle(SHORT, index).value for index in range(8000)}
    assert drawn == {answer.strip() for answer in answers}
    assert TASK.is_learnt(0.925)
    assert not TASK.is_learnt(0.92)


def test_the_task_of_needles_has_one_kind_of_example_and_the_bytes_as_vocabulary() -> None:
    examples = mixed_examples(TASK, "validation", 64, start=0, count=5)
    assert int(examples.inputs.max()) < TASK.vocab_size == BYTES.vocab_size
    assert TASK.kinds == (0,)
    TASK.check_length(SHORTEST_NEEDLE)
    with pytest.raises(ValueError, match=f"take up to {SHORTEST_NEEDLE} bytes"):
        TASK.check_length(SHORTEST_NEEDLE - 1)
