"""Examples of copying, induction and selective copying: worked examples, and that an index alone decides them."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retbench.config.synthetic import NUM_SPECIAL_TOKENS, LengthRecall, LengthRecallTask, LengthTaskName
from retbench.data.batches import IGNORED
from retbench.data.length_examples import (
    BLANK,
    COPY,
    SELECT,
    TRIGGER,
    make_length_examples,
    place_copy,
    place_induction,
    place_selection,
)
from retbench.data.synthetic import fingerprint_examples
from retbench.data.task_batches import SyntheticBatches, mixed_examples

TASKS: tuple[LengthTaskName, ...] = get_args(LengthTaskName)
NONE = IGNORED
lengths = st.integers(4, 40).map(lambda half: 2 * half)


def answers_of(targets: np.ndarray) -> list[tuple[int, int]]:
    """Return place and target of each answer."""
    return [(at, target) for at, target in enumerate(targets.tolist()) if target != IGNORED]


def test_a_string_is_followed_by_a_token_and_its_copy() -> None:
    """The construction of Jelassi et al.: after COPY, each symbol is asked for where the one before it is shown."""
    inputs, targets = place_copy(np.array([[7, 5, 9, 5], [8, 6, 0, 0]]), np.array([4, 2]), 8)
    assert inputs.tolist() == [[7, 5, 9, 5, COPY, 7, 5, 9], [8, 6, COPY, 8, BLANK, BLANK, BLANK, BLANK]]
    assert targets.tolist() == [
        [NONE, NONE, NONE, NONE, 7, 5, 9, 5],
        [NONE, NONE, 8, 6, NONE, NONE, NONE, NONE],
    ]


def test_the_trigger_at_the_end_asks_for_what_followed_it() -> None:
    """Mamba, Section 4.1.2: the special token occurs once, and again at the end of the sequence."""
    inputs, targets = place_induction(np.array([[4, 5, 6, 7, 8, 9]]), np.array([2]))
    assert inputs.tolist() == [[4, 5, TRIGGER, 7, 8, TRIGGER]]
    assert answers_of(targets[0]) == [(5, 7)]


def test_symbols_among_blanks_are_asked_for_in_their_order() -> None:
    """Mamba, Section 4.1.1, with as many marks at the end as there are symbols, each of which asks for one."""
    inputs, targets = place_selection(np.array([[9, 4, 9]]), np.array([[1, 2, 5]]), 10)
    assert inputs.tolist() == [[BLANK, 9, 4, BLANK, BLANK, 9, BLANK, SELECT, SELECT, SELECT]]
    assert answers_of(targets[0]) == [(7, 9), (8, 4), (9, 9)]


@given(lengths, st.sampled_from(["train", "test"]), st.integers(6, 40))
def test_a_copy_is_that_of_the_string(seq_len: int, split: str, vocab_size: int) -> None:
    settings = LengthRecall(vocab_size=vocab_size, num_selected=2)
    inputs, targets = make_length_examples(settings, split, "copy", seq_len, start=3, count=20)
    found = []
    for tokens, wanted in zip(inputs, targets, strict=True):
        (end,) = np.flatnonzero(tokens == COPY)
        string = tokens[:end].tolist()
        assert all(NUM_SPECIAL_TOKENS <= symbol < vocab_size for symbol in string)
        assert answers_of(wanted) == [(end + at, symbol) for at, symbol in enumerate(string)]
        assert tokens[end + 1 :].tolist() == string[:-1] + [BLANK] * (seq_len - 2 * end)
        found.append(int(end))
    assert max(found) <= seq_len // 2
    assert min(found) >= 4
    if split == "test":
        assert set(found) == {seq_len // 2}
    elif seq_len >= 16:
        assert len(set(found)) > 1, "strings of training have any length"


@given(lengths, st.integers(6, 40))
def test_the_trigger_stands_at_two_places_and_the_answer_after_the_first(
    seq_len: int, vocab_size: int
) -> None:
    settings = LengthRecall(vocab_size=vocab_size, num_selected=2)
    inputs, targets = make_length_examples(settings, "test", "induction", seq_len, start=0, count=20)
    assert inputs.max() < vocab_size
    for tokens, wanted in zip(inputs, targets, strict=True):
        first, last = np.flatnonzero(tokens == TRIGGER)
        assert last == seq_len - 1
        assert answers_of(wanted) == [(last, tokens[first + 1])]
        assert (np.delete(tokens, [first, last]) >= NUM_SPECIAL_TOKENS).all()


@given(lengths, st.integers(1, 4))
def test_the_selected_symbols_are_all_that_is_not_blank(seq_len: int, num_selected: int) -> None:
    settings = LengthRecall(num_selected=num_selected)
    inputs, targets = make_length_examples(settings, "test", "selective_copy", seq_len, start=0, count=20)
    for tokens, wanted in zip(inputs, targets, strict=True):
        text = tokens[:-num_selected]
        symbols = text[text != BLANK].tolist()
        assert len(symbols) == num_selected
        assert min(symbols) >= NUM_SPECIAL_TOKENS
        assert (tokens[-num_selected:] == SELECT).all()
        assert answers_of(wanted) == [(seq_len - num_selected + at, s) for at, s in enumerate(symbols)]


@pytest.mark.parametrize(
    ("task", "expected"),
    [("copy", "4e4eae9db183"), ("induction", "8f16e8ebafad"), ("selective_copy", "9307c5f064b0")],
)
def test_examples_are_the_same_on_every_machine_and_version(task: LengthTaskName, expected: str) -> None:
    """The hash of a test set is part of published records; another one means another test set."""
    made = make_length_examples(LengthRecall(), "test", task, 64, start=5, count=100)
    assert fingerprint_examples(*made) == expected


@given(st.sampled_from(TASKS), st.integers(0, 2**40), st.integers(1, 7))
def test_an_example_depends_on_its_index_alone(task: LengthTaskName, start: int, count: int) -> None:
    def made(first: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        return make_length_examples(LengthRecall(), "train", task, 24, start=first, count=number)

    together, alone = made(start, count), [made(start + index, 1) for index in range(count)]
    for part in (0, 1):
        assert np.array_equal(together[part], np.concatenate([one[part] for one in alone]))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "other", [{"vocab_size": 31}, {"num_selected": 7}, {"split": "test"}, {"seq_len": 26}, {"start": 1}]
)
def test_anything_else_makes_other_examples(task: LengthTaskName, other: dict[str, object]) -> None:
    def drawn(**changes: object) -> str:
        call: dict[str, object] = {"split": "train", "seq_len": 24, "start": 0, **changes}
        settings = LengthRecall(
            **{name: call.pop(name) for name in tuple(call) if name in LengthRecall.model_fields}
        )
        inputs, targets = make_length_examples(settings, task=task, **call, count=8)  # type: ignore[arg-type]
        return fingerprint_examples(inputs, targets)

    assert drawn() == drawn()
    assert drawn(**other) != drawn()


@pytest.mark.parametrize(
    ("task", "seq_len", "reason"),
    [
        ("copy", 17, "an even number of tokens"),
        ("copy", 6, "at least 8"),
        ("induction", 2, "takes 3 tokens"),
        ("selective_copy", 14, "8 symbols and their copy take 16 tokens, and seq_len is 14"),
    ],
)
def test_examples_that_cannot_be_made_are_refused(task: LengthTaskName, seq_len: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_length_examples(LengthRecall(), "test", task, seq_len, start=0, count=1)


TASK = LengthRecallTask(name="length_recall", num_selected=3)


def test_tasks_take_turns_in_training_and_the_ranks_examples_are_the_whole_steps() -> None:
    batches = SyntheticBatches(TASK, batch_size=6, seq_len=20, seed=3)
    for step in range(3):
        whole = batches.examples(step)
        parts = [batches.examples(step, rank, 3) for rank in range(3)]
        assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
        assert int((whole.targets != IGNORED).sum()) == batches.num_targets(step)
    inputs = mixed_examples(TASK, "train", 20, start=0, count=6).inputs
    marks = [(row[:, None] == torch.tensor([COPY, TRIGGER, SELECT])).any(0).tolist() for row in inputs]
    assert marks == [[True, False, False], [False, True, False], [False, False, True]] * 2


def test_a_task_alone_can_be_trained_on() -> None:
    alone = TASK.model_copy(update={"tasks": ("induction",)})
    assert alone.fingerprint == TASK.fingerprint == LengthRecall(num_selected=3).fingerprint
    assert (mixed_examples(alone, "train", 20, start=0, count=4).inputs == TRIGGER).sum(1).tolist() == [2] * 4
