"""Named model sizes, each with its source. Widths of feed-forwards are not here: `matching` solves them.

RetNet and Transformer share width, depth and vocabulary at every size; their heads differ, as they do in the
paper (retention heads are 256 wide; attention heads 64 to 128).
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from retbench.errors import unknown_name
from retbench.units import format_size


@dataclass(frozen=True)
class Size:
    """One row of a size table.

    Attributes:
        d_model: Model width.
        num_layers: Blocks.
        retention_heads: Heads of the retention mixer; keys are d_model / retention_heads wide.
        attention_heads: Query heads of the attention mixer.
        vocab_size: Rows of the embedding table and of the (untied) output head.
        source: Where the row comes from.
    """

    d_model: int
    num_layers: int
    retention_heads: int
    attention_heads: int
    vocab_size: int
    source: str

    @property
    def budget(self) -> int:
        """Non-embedding parameters to which models of the size are matched: those of 12 d_model^2 per block."""
        return 12 * self.d_model**2 * self.num_layers


_PAPER = "RetNet (arXiv:2307.08621) Table 2 and Table 7; retention heads are 256 wide"
_PAPER_VOCAB = "; vocabulary 64,000 derived from the weights line of Figure 6(a) (13.4 GB at 2 bytes)"
_PAPER_HEADS = "; attention heads 128 wide (the paper does not state them)"

_FLA = "flash-linear-attention's checkpoints (fla-hub; arXiv:2312.06635)"
_FLA_HEADS = "; attention heads of its TransformerConfig default, 32"
_YOCO = "YOCO (arXiv:2405.05254) scaling curves; retention heads are 256 wide"
_YOCO_VOCAB = "; vocabulary of its 3B model (the curves' is not stated)"

SIZES: dict[str, Size] = {
    "25k": Size(32, 2, 2, 2, 512, "Synthetic tasks, the narrowest of Mamba-2 Figure 8: 12 d^2 L = 0.025 M"),
    "40k": Size(
        32, 3, 2, 2, 512, "Synthetic tasks, the width of 25K with one layer more: 12 d^2 L = 0.037 M"
    ),
    "100k": Size(
        64, 2, 2, 2, 512, "Synthetic tasks, as Zoology Figure 2 and Mamba-2 Figure 8: 12 d^2 L = 0.098 M"
    ),
    "150k": Size(
        64,
        3,
        2,
        2,
        512,
        "Synthetic tasks, the width of Mamba Table 11 with one layer more: 12 d^2 L = 0.15 M",
    ),
    "300k": Size(96, 3, 2, 2, 1024, "CPU size, for training: 12 d^2 L = 0.33 M"),
    "400k": Size(
        128, 2, 2, 2, 512, "Synthetic tasks, as Zoology Figure 2 and Mamba-2 Figure 8: 12 d^2 L = 0.39 M"
    ),
    "1m": Size(128, 4, 2, 2, 1024, "CPU size, for tests: 12 d^2 L = 0.79 M"),
    "3m": Size(192, 6, 4, 4, 1024, "CPU size, for training: 12 d^2 L = 2.7 M"),
    "6m": Size(256, 6, 2, 4, 4096, "CPU size, for smoke runs: 12 d^2 L = 4.7 M"),
    "25m": Size(
        512,
        6,
        2,
        8,
        8192,
        "CPU size: torchscale retnet_base's 512 wide, 6 layers, 2 heads; 12 d^2 L = 18.9 M",
    ),
    "125m": Size(
        768, 12, 3, 12, 16384, "CPU size: GPT-2 small's 768 wide, 12 layers, 12 heads; 12 d^2 L = 84.9 M"
    ),
    "200m": Size(
        1024,
        16,
        4,
        16,
        64000,
        "RetNet Tables 5 and 6; torchscale retnet_medium; attention heads 64 wide, vocabulary as at its other sizes "
        "(neither is stated)",
    ),
    "1.3b": Size(2048, 24, 8, 16, 64000, _PAPER + _PAPER_HEADS + _PAPER_VOCAB),
    "2.7b": Size(2560, 32, 10, 20, 64000, _PAPER + _PAPER_HEADS + _PAPER_VOCAB),
    "6.7b": Size(4096, 32, 16, 32, 64000, _PAPER + _PAPER_HEADS + _PAPER_VOCAB),
    "13b": Size(
        5120,
        40,
        20,
        40,
        64000,
        "RetNet Table 4 (cost only); rows from torchscale retnet_13b" + _PAPER_HEADS + _PAPER_VOCAB,
    ),
    "torchscale-65b": Size(
        8192,
        64,
        32,
        64,
        64000,
        "torchscale retnet_65b, which has 52 B parameters (its xl, 3b, 7b and 13b are 1.3b to 13b here); attention "
        "heads 128 wide, vocabulary as at the paper's sizes (neither is stated)",
    ),
    "fla-340m": Size(
        1024, 24, 4, 16, 32000, _FLA + "; attention heads 64 wide; its embeddings are tied, here they are not"
    ),
    "fla-1.3b": Size(2048, 24, 8, 32, 32000, _FLA + _FLA_HEADS),
    "fla-2.7b": Size(2560, 32, 10, 32, 32000, _FLA + _FLA_HEADS),
    "yoco-160m": Size(768, 12, 3, 12, 100288, _YOCO + _YOCO_VOCAB),
    "yoco-400m": Size(1024, 24, 4, 16, 100288, _YOCO + _YOCO_VOCAB),
    "yoco-830m": Size(1536, 24, 6, 12, 100288, _YOCO + _YOCO_VOCAB),
    "yoco-1.4b": Size(2048, 24, 8, 16, 100288, _YOCO + _YOCO_VOCAB),
    "yoco-2.7b": Size(2560, 32, 10, 20, 100288, _YOCO + _YOCO_VOCAB),
    "yoco-3b": Size(3072, 26, 24, 24, 100288, "YOCO Table 7: its 3B model; all heads are 128 wide"),
    "yoco-6.8b": Size(4096, 32, 16, 32, 100288, _YOCO + _YOCO_VOCAB),
    "yoco-13b": Size(5120, 40, 20, 40, 100288, _YOCO + _YOCO_VOCAB),
}


def size_id(name: str) -> str:
    """Return the name of a size as files have it: '25M' and '25m' are '25m'; an unknown name is left as it is."""
    return name.lower() if name.lower() in SIZES else name


SizeId = Annotated[str, AfterValidator(size_id)]
"""Field with the name of a size, in upper or lower case."""


def find_size(name: str) -> Size:
    """Return the size called `name`, in upper or lower case; ConfigError with a suggestion when there is none."""
    if size_id(name) not in SIZES:
        raise unknown_name("size", name, map(format_size, SIZES))
    return SIZES[size_id(name)]
