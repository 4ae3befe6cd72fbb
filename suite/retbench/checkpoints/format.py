"""Parts that checkpoint formats share: typed configuration files, and the mapping of weights. No torch.

A tensor of a `Decoder` is one or more tensors of the file, concatenated by rows: queries, keys and values, for example,
are one projection here.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.errors import CheckpointError
from retbench.parsing import parse_json
from retbench.strict import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from retbench.checkpoints.weights import StoredWeights

CONFIG_NAME = "config.json"

Shape = tuple[int, ...]


class Description(Strict):
    """The contents of a format's configuration."""

    config: ModelConfig
    context_len: int | None = None
    """Tokens of the longest training sequence; None if the checkpoint does not state it."""
    tied_embeddings: bool = False
    """True if the output head is the embedding table. A `Decoder` keeps a copy for each."""
    tokenizer: str | None = None
    """Name or path of the tokenizer; None if the checkpoint has none."""
    tokenizer_fingerprint: str | None = None
    weights_fingerprint: str | None = None
    """`weights.fingerprint_tensors` of the stored tensors; only retbench's own format has one."""
    metadata: dict[str, Any] = Field(default_factory=dict)


class Fields(BaseModel):
    """The fields of a public configuration that affect the model; all others are ignored.

    A field with one permitted value stands for a feature that models here lack: any other value is refused.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; CheckpointError if the file cannot be read or holds no JSON object."""
    try:
        raw = parse_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(raw).__name__}, expected an object.")
    return raw


class WeightPart(NamedTuple):
    """A tensor of a file that is all, or some rows, of a tensor of a `Decoder`."""

    name: str
    shape: Shape
    """Expected shape in the file."""
    interleaved_heads: int | None = None
    """Heads whose rows are stored as adjacent rotary pairs (x_0, x_1), ...; pairs here are (x_i, x_{i+K/2})."""
    convert: "Callable[[Tensor], Tensor] | None" = None
    """Turns the tensor of the file into rows here, where its axes differ in number or order."""


Plan = dict[str, tuple[WeightPart, ...]]
"""For each tensor of a `Decoder`, its parts in the file, in order."""


@dataclass(frozen=True)
class Names:
    """Tensor names of a decoder with RMSNorm and a gated feed-forward; defaults are those of transformers' Llama."""

    embedding: str = "model.embed_tokens.weight"
    norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    layer: str = "model.layers.{}"
    """A block, with `{}` for its number; the names below follow it after a dot."""
    mixer_norm: str = "input_layernorm.weight"
    projections: tuple[str, ...] = tuple(f"self_attn.{letter}_proj.weight" for letter in "qkv")
    """Inputs of the mixer: queries, keys, values and, if the mixer has one, the gate."""
    out: str = "self_attn.o_proj.weight"
    ffn_norm: str = "post_attention_layernorm.weight"
    gate_up: tuple[str, ...] = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
    """Inputs of the feed-forward: the activated one, then the other; or both as one tensor."""
    down: str = "mlp.down_proj.weight"
    head_norm: str | None = None
    """Norm of the heads, if it has a weight."""


@dataclass(frozen=True)
class Format:
    """A checkpoint format.

    Attributes:
        recognises: Returns True for a configuration in this format.
        describe: Reads a configuration, which comes from the file at the path. Raises CheckpointError or
            ValidationError if it is invalid, or of a model that this package does not have.
        plan: Maps the weights, given the description, the names in the files, and the shapes of the `Decoder`.
        ignored: Regular expression of the names of tensors that may be present and are not weights.
        check: Raises CheckpointError if stored values contradict the configuration in a way that shapes do not show.
        library: Module that loads the model by another library, with the functions `load` and `import_code` of
            `models.hf`; None where it is a `Decoder`.
        render: Returns the configuration of a model, as `describe` reads it; None for a model of another kind. Formats
            without it are only read.
        written: Names that choose among the layouts of the weights when they are written, as names in the files do.
    """

    recognises: Callable[[Mapping[str, Any]], bool]
    describe: Callable[[dict[str, Any], Path], Description]
    plan: Callable[[Description, Collection[str], Mapping[str, Shape]], Plan]
    ignored: str
    check: "Callable[[Description, StoredWeights], None] | None" = None
    library: str | None = None
    render: Callable[[Description], dict[str, Any] | None] | None = None
    written: Collection[str] = ()


def map_decoder(described: Description, names: Names, *, interleaved: bool = False) -> Plan:
    """Return the parts of every tensor of a model in a file.

    Args:
        described: A model with RMSNorm and a gated feed-forward.
        names: Names of the tensors in the file.
        interleaved: Rows of query and key heads are adjacent rotary pairs instead of halves.
    """
    config = described.config
    table = (config.vocab_size, config.d_model)
    plan: Plan = {
        "embedding.weight": (WeightPart(names.embedding, table),),
        "norm.weight": (WeightPart(names.norm, (config.d_model,)),),
        "head.weight": (WeightPart(names.embedding if described.tied_embeddings else names.head, table),),
    }
    for index, block in enumerate(config.layers):
        plan |= prefixed(_map_block(block, names, interleaved), f"blocks.{index}", names.layer.format(index))
    return plan


def prefixed(plan: Plan, own: str, theirs: str) -> Plan:
    """Return a plan with prefixes before the names of its tensors: `own` here, and `theirs` in the file."""
    return {
        f"{own}.{name}": tuple(part._replace(name=f"{theirs}.{part.name}") for part in parts)
        for name, parts in plan.items()
    }


def _map_block(block: BlockConfig, names: Names, interleaved: bool) -> Plan:
    """Return the parts of one block's tensors, without the block's own name."""
    mixer, ffn, projection = block.mixer, block.ffn, block.mixer.projection()
    assert ffn is not None
    assert projection is not None
    d, width = mixer.d_model, ffn.ffn_dim
    inputs = tuple(
        WeightPart(name, (rows, d), heads if interleaved else None)
        for name, rows, heads in zip(
            names.projections, projection.widths, projection.rotary_heads, strict=True
        )
    )
    plan: Plan = {
        "mixer_norm.weight": (WeightPart(names.mixer_norm, (d,)),),
        f"mixer.{projection.name}.weight": inputs,
        "mixer.out_proj.weight": (WeightPart(names.out, (d, projection.mixed_width)),),
        "ffn_norm.weight": (WeightPart(names.ffn_norm, (d,)),),
        "ffn.gate_up_proj.weight": tuple(
            WeightPart(name, (2 * width // len(names.gate_up), d)) for name in names.gate_up
        ),
        "ffn.down_proj.weight": (WeightPart(names.down, (d, width)),),
    }
    if names.head_norm is not None and mixer.other_params:
        plan["mixer.head_norm.weight"] = (WeightPart(names.head_norm, (mixer.other_params,)),)
    return plan
