"""Generated examples: the published construction, and that they depend on task, split and index alone."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retbench.config.synthetic import Mqar, MqarTask
from retbench.data.batches import IGNORED
from retbench.data.synthetic import fingerprint_examples, make_examples, pair_distances, place
from retbench.data.task_batches import SyntheticBatches, mixed_examples


def published(
    keys: np.ndarray, values: np.ndarray, gaps: np.ndarray, seq_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """The construction of Zoology (arXiv:2312.04927, Appendix), step by step, with one token more that it drops."""
    examples = [[0] * (seq_len + 1) for _ in keys]
    labels = [[-100] * (seq_len + 1) for _ in keys]
    for row in range(len(keys)):
        length = 2 * len(keys[row])
        for pair, (key, value) in enumerate(zip(keys[row], values[row], strict=True)):
            examples[row][2 * pair : 2 * pair + 2] = [key, value]
            examples[row][length + 2 * gaps[row][pair]] = key
            labels[row][length + 2 * gaps[row][pair] + 1] = value
    return np.array(examples)[:, :-1], np.array(labels)[:, 1:]


def test_an_example_is_the_one_that_zoology_documents() -> None:
    """The example in the docstring of its generator: keys 2 and 4, values 8 and 7, asked at the tokens 12 and 6."""
    keys, values, slots = np.array([[2, 4]]), np.array([[8, 7]]), np.array([[4, 1]])
    inputs, targets = place(keys, values, slots, 16)
    assert inputs.tolist() == [[2, 8, 4, 7, 0, 0, 4, 0, 0, 0, 0, 0, 2, 0, 0, 0]]
    assert [(at, target) for at, target in enumerate(targets[0]) if target != -100] == [(6, 7), (12, 8)]
    assert np.array_equal(published(keys, values, slots, 16), (inputs, targets))


@given(st.integers(2, 12), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_the_construction_equals_the_published_one(num_pairs: int, more: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    seq_len = 4 * num_pairs + 2 * more
    keys, values = (np.stack([random.permutation(50)[:num_pairs] + low for _ in range(3)]) for low in (1, 51))
    slots = np.stack([random.permutation(seq_len // 2 - num_pairs)[:num_pairs] for _ in range(3)])
    assert np.array_equal(published(keys, values, slots, seq_len), place(keys, values, slots, seq_len))


@given(st.sampled_from([16, 64, 257]), st.integers(2, 6), st.booleans(), st.sampled_from(["train", "test"]))
def test_every_key_is_asked_once_and_its_target_is_its_value(
    vocab_size: int, num_pairs: int, random_filler: bool, split: str
) -> None:
    task = Mqar(vocab_size=vocab_size, random_filler=random_filler)
    inputs, targets = make_examples(task, split, num_pairs, 40, start=9, count=5)
    assert inputs.min() >= 0
    assert inputs.max() < vocab_size
    for tokens, answers in zip(inputs.tolist(), targets.tolist(), strict=True):
        pairs = dict(zip(tokens[0 : 2 * num_pairs : 2], tokens[1 : 2 * num_pairs : 2], strict=True))
        assert len(set(pairs)) == len(set(pairs.values())) == num_pairs
        assert all(1 <= key < vocab_size // 2 <= value < vocab_size for key, value in pairs.items())
        asked = [(at, target) for at, target in enumerate(answers) if target != IGNORED]
        assert sorted(tokens[at] for at, _ in asked) == sorted(pairs)
        assert all(pairs[tokens[at]] == target and at >= 2 * num_pairs for at, target in asked)
        if not random_filler:
            assert sum(token != 0 for token in tokens) == 3 * num_pairs


def test_examples_are_the_same_on_every_machine_and_version() -> None:
    """The hash of a test set is part of published records; another one means another test set."""
    assert fingerprint_examples(*make_examples(Mqar(), "test", 8, 64, start=0, count=100)) == "1036f9690b59"
    filled = Mqar(vocab_size=8192, random_filler=True)
    assert fingerprint_examples(*make_examples(filled, "test", 64, 256, start=7, count=3)) == "c08bbf4faca0"


@given(st.integers(0, 2**40), st.integers(1, 7))
def test_an_example_depends_on_its_index_alone(start: int, count: int) -> None:
    together = make_examples(Mqar(vocab_size=64), "train", 4, 24, start=start, count=count)
    alone = [
        make_examples(Mqar(vocab_size=64), "train", 4, 24, start=start + index, count=1)
        for index in range(count)
    ]
    for part in (0, 1):
        assert np.array_equal(together[part], np.concatenate([one[part] for one in alone]))


@pytest.mark.parametrize(
    "other",
    [
        {"vocab_size": 128},
        {"power": 0.5},
        {"random_filler": True},
        {"split": "test"},
        {"num_pairs": 5},
        {"seq_len": 26},
        {"start": 1},
    ],
)
def test_anything_else_makes_other_examples(other: dict[str, object]) -> None:
    def drawn(**changes: object) -> str:
        call: dict[str, object] = {"split": "train", "num_pairs": 4, "seq_len": 24, "start": 0, **changes}
        task = Mqar(**{name: call.pop(name) for name in tuple(call) if name in Mqar.model_fields})
        inputs, targets = make_examples(task, **call, count=8)  # type: ignore[arg-type]
        return fingerprint_examples(inputs, targets)

    assert drawn() == drawn()
    assert drawn(**other) != drawn()


def test_near_places_are_asked_most_often_by_the_power_law() -> None:
    """Against numpy's own choice without replacement, which the published generator uses."""
    num_examples, places = 20_000, np.arange(12)
    _, targets = make_examples(Mqar(vocab_size=64), "test", 4, 32, start=0, count=num_examples)
    found = (targets != IGNORED).sum(0)[8::2] / num_examples
    weights = 0.01 * (1.0 + places) ** (0.01 - 1)
    random = np.random.default_rng(0)
    theirs = [random.choice(12, 4, replace=False, p=weights / weights.sum()) for _ in range(num_examples)]
    expected = np.bincount(np.concatenate(theirs), minlength=12) / num_examples
    assert found == pytest.approx(expected, abs=0.02)  # five standard errors
    assert found[0] > 2 * found[6]
    uniform = make_examples(Mqar(vocab_size=64, power=1.0), "test", 4, 32, start=0, count=num_examples)[1]
    assert (uniform != IGNORED).sum(0)[8::2] / num_examples == pytest.approx(4 / 12, abs=0.02)


TASK = MqarTask(name="mqar", vocab_size=64, num_pairs=(2, 3, 5))


def test_the_ranks_examples_are_the_whole_steps() -> None:
    batches = SyntheticBatches(TASK, batch_size=6, seq_len=20, seed=3)
    for step in range(4):
        whole = batches.examples(step)
        parts = [batches.examples(step, rank, 3) for rank in range(3)]
        assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
        assert int((whole.targets != IGNORED).sum()) == batches.num_targets(step)


def test_examples_are_fresh_at_every_step_and_seed_and_numbers_of_pairs_take_turns() -> None:
    rows = [
        tuple(row)
        for seed in (0, 1)
        for step in range(20)
        for row in SyntheticBatches(TASK, batch_size=4, seq_len=20, seed=seed).examples(step).inputs.tolist()
    ]
    assert len(set(rows)) == len(rows) == 160
    counts = (mixed_examples(TASK, "validation", 20, start=0, count=7).targets != IGNORED).sum(1)
    assert counts.tolist() == [2, 3, 5, 2, 3, 5, 2]


def test_the_hash_is_that_of_little_endian_tokens() -> None:
    inputs, targets = np.array([[1, 2]]), np.array([[-100, 3]])
    content = b"".join(value.to_bytes(8, "little", signed=True) for value in (1, 2, -100, 3))
    assert fingerprint_examples(inputs, targets) == hashlib.sha256(content).hexdigest()[:12]


@pytest.mark.parametrize(
    ("num_pairs", "seq_len", "reason"),
    [(4, 17, "must be even"), (5, 18, "5 pairs .* take 20 tokens"), (8, 64, "vocab_size 16 has 7")],
)
def test_examples_that_cannot_be_made_are_refused(num_pairs: int, seq_len: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_examples(Mqar(vocab_size=16), "test", num_pairs, seq_len, start=0, count=1)


def test_a_distance_is_that_from_a_question_to_its_key_among_the_pairs() -> None:
    """In Zoology's example key 2 stands at the token 0 and is asked at 12, and key 4 stands at 2 and is asked at 6."""
    inputs, targets = place(np.array([[2, 4]]), np.array([[8, 7]]), np.array([[4, 1]]), 16)
    distances = pair_distances(inputs, targets, 2)
    assert {place: int(distances[0, place]) for place in np.flatnonzero(distances[0])} == {6: 4, 12: 12}


def test_fillers_that_are_keys_too_do_not_change_distances() -> None:
    plain, filled = (Mqar(vocab_size=8, random_filler=filler) for filler in (False, True))
    inputs, targets = make_examples(filled, "test", 3, 40, start=0, count=50)
    without = np.where((targets != IGNORED) | (np.arange(40) < 6), inputs, 0)
    assert (inputs != without).any()
    assert np.array_equal(pair_distances(inputs, targets, 3), pair_distances(without, targets, 3))
    found = pair_distances(*make_examples(plain, "test", 3, 40, start=0, count=50), 3)
    assert (found > 0).sum() == 150
    assert found.max() < 40
