import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retbench.data.batches import Batches, epoch_order
from retbench.data.corpora import load_corpus
from retbench.data.packing import PackedTokens, pack
from retbench.data.tokenizers import load_tokenizer
from retbench.errors import ConfigError

LETTERS = "".join(chr(97 + number % 26) for number in range(103))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedTokens:
    """104 tokens: 103 letters and the one that ends them."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text(LETTERS, encoding="utf-8")
    return pack(load_corpus(str(folder / "a.txt")), "all", load_tokenizer("bytes"), folder / "packed")


@given(
    batch_size=st.integers(1, 10),
    seq_len=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    first_epoch=st.integers(0, 3),
)
def test_every_row_comes_once_an_epoch(
    packed: PackedTokens, batch_size: int, seq_len: int, seed: int, first_epoch: int
) -> None:
    batches = Batches(packed, batch_size=batch_size, seq_len=seq_len, seed=seed)
    num_rows = 104 // (seq_len + 1)
    assert batches.num_rows == num_rows
    steps = range(first_epoch * num_rows // batch_size, ((first_epoch + 1) * num_rows - 1) // batch_size + 1)
    rows = torch.cat([batches.batch(step) for step in steps])
    before = first_epoch * num_rows - steps.start * batch_size
    epoch = rows[before : before + num_rows]
    assert epoch.shape == (num_rows, seq_len + 1)
    cut = torch.from_numpy(packed.tokens[: num_rows * (seq_len + 1)].astype("int64")).view(num_rows, -1)
    assert sorted(epoch.tolist()) == sorted(cut.tolist())


def test_a_batch_depends_on_seed_and_step_alone(packed: PackedTokens) -> None:
    def batches(seed: int) -> Batches:
        return Batches(packed, batch_size=4, seq_len=7, seed=seed)

    one, resumed = batches(1), batches(1)
    first = [one.batch(step) for step in range(12)]
    assert all(torch.equal(resumed.batch(step), first[step]) for step in reversed(range(12)))
    assert first[0].dtype == torch.int64
    assert first[0].shape == (4, 8)
    assert not torch.equal(first[0], batches(2).batch(0))
    assert not torch.equal(torch.cat(first[:3]), torch.cat(first[3:6]))


def test_the_order_says_which_tokens(packed: PackedTokens) -> None:
    batches = Batches(packed, batch_size=3, seq_len=4, seed=0)
    numbers = epoch_order(20, 0, 0)[6:9]
    expected = [packed.tokens[number * 5 : number * 5 + 5].tolist() for number in numbers]
    assert batches.batch(2).tolist() == expected


def test_ranks_share_a_batch(packed: PackedTokens) -> None:
    batches = Batches(packed, batch_size=6, seq_len=5, seed=3)
    for world_size in (1, 2, 3, 6):
        parts = [batches.batch(5, rank, world_size) for rank in range(world_size)]
        assert torch.equal(torch.cat(parts), batches.batch(5))
        assert {len(part) for part in parts} == {6 // world_size}


def test_the_order_is_the_same_with_every_version_of_the_libraries() -> None:
    assert epoch_order(8, 0, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert epoch_order(8, 2**63 - 1, 5).tolist() == [5, 0, 1, 7, 3, 6, 2, 4]


def test_fewer_rows_than_a_batch_are_refused(packed: PackedTokens) -> None:
    with pytest.raises(
        ConfigError, match=r"a batch takes 14 x 8 = 112 tokens and the split 'all' of '.*a.txt' has 104"
    ):
        Batches(packed, batch_size=14, seq_len=7, seed=0)


def test_all_rows_in_one_batch_are_enough(packed: PackedTokens) -> None:
    assert Batches(packed, batch_size=13, seq_len=7, seed=0).batch(3).shape == (13, 8)
