import pytest

from retbench.architectures.sizes import SIZES, find_size
from retbench.errors import ConfigError


@pytest.mark.parametrize("name", SIZES)
def test_every_size_says_where_it_comes_from(name: str) -> None:
    assert len(SIZES[name].source) > 10


@pytest.mark.parametrize("name", SIZES)
def test_heads_divide_the_width_into_rotary_pairs(name: str) -> None:
    size = SIZES[name]
    assert size.d_model % (2 * size.retention_heads) == 0
    assert size.d_model % (2 * size.attention_heads) == 0


# arXiv:2307.08621 Table 2: size, hidden dimension, layers.
@pytest.mark.parametrize(
    ("name", "d_model", "num_layers"), [("1.3b", 2048, 24), ("2.7b", 2560, 32), ("6.7b", 4096, 32)]
)
def test_paper_sizes_are_those_of_table_2(name: str, d_model: int, num_layers: int) -> None:
    size = SIZES[name]
    assert (size.d_model, size.num_layers) == (d_model, num_layers)
    assert size.d_model // size.retention_heads == 256


@pytest.mark.parametrize("name", sorted(SIZES.keys() - {"torchscale-65b"}))  # its name, not its size
def test_the_name_is_near_the_parameters_of_the_blocks(name: str) -> None:
    number, letter = float(name.rpartition("-")[2][:-1]), name[-1]
    size = SIZES[name]
    blocks = 12 * size.d_model**2 * size.num_layers
    everything = blocks + 2 * size.vocab_size * size.d_model
    nominal = number * {"k": 1e3, "m": 1e6, "b": 1e9}[letter]
    assert blocks <= 1.11 * nominal  # a name has one digit or two
    assert everything >= 0.85 * nominal


def test_an_unknown_size_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"unknown size '125n'\. Did you mean '125M'\?"):
        find_size("125n")
