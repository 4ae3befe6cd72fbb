"""Where the weights of a `Decoder` are in a file of another format: names, shapes and order, without torch.

A tensor of ours is rows of theirs, one below the other: queries, keys and values are one projection here.
"""

from dataclasses import dataclass
from typing import NamedTuple

from retbench.architectures.configs import BlockConfig, ModelConfig

Shape = tuple[int, ...]


class Part(NamedTuple):
    """A tensor in a file that is the whole, or some rows, of one of ours."""

    name: str
    shape: Shape
    """As it must be in the file."""
    interleaved_heads: int | None = None
    """Heads whose rows are rotary pairs side by side, (x_0, x_1), (x_2, x_3), ...; ours are (x_i, x_{i+K/2})."""


Plan = dict[str, tuple[Part, ...]]
"""For each tensor of ours its parts in the file, in order."""


@dataclass(frozen=True)
class Names:
    """What a format calls the tensors of a decoder whose blocks have RMSNorm and a gated feed-forward.

    Attributes:
        embedding: The table.
        norm: The last norm.
        head: The output head.
        layer: A block, with `{}` for its number; the names below follow it after a dot.
        mixer_norm: The norm before the mixer.
        projections: The mixer's inputs: queries, keys, values and, for a RetNet with one, the gate.
        out: The mixer's output.
        ffn_norm: The norm before the feed-forward.
        gate_up: The feed-forward's inputs: the one that is activated, then the other; or both as one tensor.
        down: The feed-forward's output.
        head_norm: The norm of the heads, where it has a weight.
    """

    embedding: str
    norm: str
    head: str
    layer: str
    mixer_norm: str
    projections: tuple[str, ...]
    out: str
    ffn_norm: str
    gate_up: tuple[str, ...]
    down: str
    head_norm: str | None = None


def map_decoder(
    config: ModelConfig, names: Names, *, tied_embeddings: bool = False, interleaved: bool = False
) -> Plan:
    """The parts of every tensor of `config`'s model under `names`.

    Args:
        config: A variant with RMSNorm and a gated feed-forward.
        names: Of the tensors in the file.
        tied_embeddings: The head is the embedding table.
        interleaved: The rows of query and key heads are rotary pairs side by side, where ours are halves.
    """
    table = (config.vocab_size, config.d_model)
    plan: Plan = {
        "embedding.weight": (Part(names.embedding, table),),
        "norm.weight": (Part(names.norm, (config.d_model,)),),
        "head.weight": (Part(names.embedding if tied_embeddings else names.head, table),),
    }
    for index, block in enumerate(config.layers):
        for name, parts in _map_block(block, names, interleaved).items():
            theirs = names.layer.format(index)
            plan[f"blocks.{index}.{name}"] = tuple(
                part._replace(name=f"{theirs}.{part.name}") for part in parts
            )
    return plan


def _map_block(block: BlockConfig, names: Names, interleaved: bool) -> Plan:
    """Return the same of one block, without the block's own name."""
    mixer, ffn, projection = block.mixer, block.ffn, block.mixer.projection()
    assert ffn is not None
    assert projection is not None
    d, width = mixer.d_model, ffn.ffn_dim
    inputs = tuple(
        Part(name, (rows, d), heads if interleaved else None)
        for name, rows, heads in zip(
            names.projections, projection.widths, projection.rotary_heads, strict=True
        )
    )
    plan: Plan = {
        "mixer_norm.weight": (Part(names.mixer_norm, (d,)),),
        f"mixer.{projection.name}.weight": inputs,
        "mixer.out_proj.weight": (Part(names.out, (d, projection.mixed_width)),),
        "ffn_norm.weight": (Part(names.ffn_norm, (d,)),),
        "ffn.gate_up_proj.weight": tuple(
            Part(name, (2 * width // len(names.gate_up), d)) for name in names.gate_up
        ),
        "ffn.down_proj.weight": (Part(names.down, (d, width)),),
    }
    if names.head_norm is not None and mixer.other_params:
        plan["mixer.head_norm.weight"] = (Part(names.head_norm, (mixer.other_params,)),)
    return plan
