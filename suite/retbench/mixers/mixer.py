"""Sequence mixers: their sizes, forms, state and analytical costs. Imports no torch.

A multiply and an add are two operations. Norms, activations and rotations are left out of the operation counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import getattr_static
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

from pydantic import Field

from retbench.errors import ConfigError, shown
from retbench.strict import Strict
from retbench.user_packages import is_amount

if TYPE_CHECKING:
    from retbench.mixers.module import MixerModule

DTYPE_BYTES: Mapping[str, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
WIDE_BYTES: Mapping[str, int] = {"float64": 8, "float32": 4, "bfloat16": 4, "float16": 4}
"""Bytes of a value that is held in the wider of float32 and the model's dtype."""

FormKind = Literal["parallel", "chunkwise", "recurrent", "kernel"]
StateKind = Literal["fixed", "per_token"]


@dataclass(frozen=True)
class Form:
    """One way to compute a mixer over more than one token.

    Attributes:
        kind: parallel: all tokens at once. chunkwise: parallel inside a chunk. recurrent: token by token. kernel: by a
            library's fused kernel.
        quadratic: It holds a score for every pair of tokens.
        reads_as: The form that it differs from in decode steps only, if there is one.
    """

    kind: FormKind
    quadratic: bool = False
    reads_as: str | None = None


@dataclass(frozen=True)
class StateTensor:
    """One tensor that a layer carries from token to token.

    Attributes:
        name: Unique in its layer.
        shape: Of one sequence. per_token tensors have a token axis after their first axis, left out here.
        kind: fixed: the same size at every position. per_token: one entry for each token, allocated to a capacity.
        window: Entries that a per_token tensor holds at most, as a ring buffer: the tokens after that many are written
            over earlier ones. 0 keeps the entries of all tokens.
        wide: It is held in the wider of float32 and the model's dtype.
        concatenated: A per_token tensor that holds exactly the tokens so far, without a capacity: new tokens are
            concatenated to a copy.
        by_value: Of matrices (K, V), or of the values of all tokens: on a CPU the entries of one value are adjacent in
            memory, in place of those of one key or token, where the module `reads_by_value`. Compiled code then updates
            a state and reads it in one pass, and sums the values of tokens as fast as it reads them.
    """

    name: str
    shape: tuple[int, ...]
    kind: StateKind = "fixed"
    window: int = 0
    wide: bool = False
    concatenated: bool = False
    by_value: bool = False

    def num_tokens(self, capacity: int) -> int:
        """Return the length of the token axis for a capacity; 1 for a tensor without one.

        A capacity of 0 states no limit: it gives a whole window, which any number of tokens fits into.
        """
        if self.kind == "fixed":
            return 1
        return min(capacity or self.window, self.window) if self.window else capacity

    def max_tokens(self, length: int) -> int | None:
        """Return the tokens that fit into a token axis of a length; None where any number does."""
        limited = self.kind == "per_token" and not self.concatenated and not 0 < self.window <= length
        return length if limited else None

    def num_bytes(self, dtype: str, num_tokens: int = 1) -> int:
        """Return the bytes of one sequence with so many tokens on the token axis."""
        values = num_tokens
        for width in self.shape:
            values *= width
        return values * (WIDE_BYTES if self.wide else DTYPE_BYTES)[dtype]

    def bytes_read(self, dtype: str, context_len: int) -> int:
        """Return the bytes that a decode step at a depth reads, for one sequence.

        Of a tensor with a token axis these are the entries of the context and of the new token.
        """
        if self.kind == "fixed":
            return self.num_bytes(dtype)
        return self.num_bytes(dtype, min(context_len + 1, self.num_tokens(context_len + 1)))

    def bytes_moved(self, dtype: str, context_len: int) -> int:
        """Return the bytes that a decode step at a depth reads and writes at least, for one sequence.

        A fixed tensor is written whole, and of the others the entry of the new token. A concatenation reads the context
        once more, and writes it again.
        """
        if self.concatenated:
            return self.num_bytes(dtype, 3 * context_len + 2)
        return self.bytes_read(dtype, context_len) + self.num_bytes(dtype)


class Projection(NamedTuple):
    """The input projection of a mixer, as checkpoints of other formats split it.

    Attributes:
        name: Our parameter, without `.weight`.
        widths: Outputs of each part (queries, keys, values, gate, ...), in order.
        rotary_heads: Heads of each part that is rotated; None for the others.
        mixed_width: Width of what the output projection takes.
    """

    name: str
    widths: tuple[int, ...]
    rotary_heads: tuple[int | None, ...]
    mixed_width: int


class KeptValues(NamedTuple):
    """Values that training keeps for the gradients, for one layer.

    Attributes:
        narrow: Values for each token in the model's dtype.
        wide: Values for each token in the wide dtype.
        scores: Tensors of one score for each pair of tokens and head, in the wide dtype.
    """

    narrow: int
    wide: int = 0
    scores: int = 0


class WholeModel(NamedTuple):
    """Parameters of a model that is not taken apart into mixers and feed-forwards here.

    Attributes:
        num_params: All parameters; a table that is embedding and head counts once.
        num_params_nonembedding: Those outside of the embedding table and the head.
    """

    num_params: int
    num_params_nonembedding: int


class SizeFields(Protocol):
    """Fields of a model size that mixers read; see `retbench.architectures.sizes.Size`."""

    @property
    def d_model(self) -> int: ...  # noqa: D102
    @property
    def retention_heads(self) -> int: ...  # noqa: D102
    @property
    def attention_heads(self) -> int: ...  # noqa: D102


class Mixer(Strict):
    """A sequence mixer with all its sizes. A subclass is one kind of mixer; its folder's `MIXER` names it."""

    mixer: str
    """Name of the kind, as configurations store it."""
    d_model: int = Field(ge=1)
    num_heads: int = Field(ge=1)

    title: ClassVar[str]
    """Name in messages and in hybrids' labels."""
    forms: ClassVar[Mapping[str, Form]]
    """The forms that a model can be asked to run with."""
    default_form: ClassVar[str]
    default_chunk_size: ClassVar[int | None] = None
    """Tokens of a chunk of the chunkwise form; None where the mixer has no chunks."""
    published_init: ClassVar[bool] = False
    """True if training can start from projections as published, which differ from those of every other model."""
    implementation: ClassVar[str]
    """"module:class" of the torch module, imported when a model is built."""
    library: ClassVar[str | None] = None
    """The package that computes the layers, if it is another than retbench. Records state its version."""

    @classmethod
    def at_size(cls, size: "SizeFields", **fields: Any) -> Self:
        """Return the mixer of a model size with its usual heads and widths; `fields` replace what they name.

        Raises:
            pydantic.ValidationError: a field is unknown or does not fit.
        """
        raise NotImplementedError

    @property
    def head_dim(self) -> int:
        """Width of one query or key head."""
        return self.d_model // self.num_heads

    @property
    def streamed_params(self) -> int:
        """Parameters of products whose result later tokens need: keys, values, decays."""
        raise NotImplementedError

    @property
    def local_params(self) -> int:
        """Parameters of the other products: of a prompt's last layer they see its last token only."""
        raise NotImplementedError

    @property
    def other_params(self) -> int:
        """Parameters outside of products, such as those of a norm."""
        return 0

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The tensors that one layer carries from token to token; none where it reads those of another layer."""
        raise NotImplementedError

    @property
    def source(self) -> "Mixer | None":
        """The mixer whose state it reads, in the nearest earlier layer that has exactly this mixer.

        None for a mixer that keeps a state.
        """
        return None

    @property
    def whole_model(self) -> WholeModel | None:
        """Counts of the whole model where the mixer stands for one; None for a mixer of a block."""
        return None

    @property
    def grows(self) -> bool:
        """True if the state grows with the context without a limit."""
        return any(one.kind == "per_token" and not one.window for one in self.state)

    @property
    def concatenates(self) -> bool:
        """True if a tensor of the state is copied at every token."""
        return any(one.concatenated for one in self.state)

    def chunk_size(self, form: str, asked: int | None) -> int | None:
        """Return the tokens of a chunk that a form runs with; None for a form without chunks."""
        return None

    def decode_flops(self, context_len: int) -> int:
        """Return the operations of one decode step at a depth, without the projections, for one sequence."""
        raise NotImplementedError

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the operations between tokens of a forward pass over one sequence without a state."""
        raise NotImplementedError

    def constant_flops(self, context_len: int) -> int:
        """Return those of `training_flops` that are products with constants, for which no gradient is computed."""
        return 0

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the operations between tokens of one prompt; with `last_only` only the last token has an output."""
        raise NotImplementedError

    def decode_workspace(self, dtype: str) -> int:
        """Return the values of the model's dtype alive at once in a decode step, beside input and residual."""
        raise NotImplementedError

    def append_workspace(self, context_len: int) -> int:
        """Return the values of the model's dtype alive at once while a token is appended to a cache, beside the state.

        It is 0 for a mixer that writes the token in place. Input and residual are left out, as in `decode_workspace`.
        """
        return 0

    def prefill_workspace(self) -> int:
        """Return the values alive at once for each token of a prompt, roughly."""
        return 2 * (self.streamed_params + self.local_params) // self.d_model

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return roughly what training keeps of one layer."""
        raise NotImplementedError

    def projection(self) -> Projection | None:
        """Return the input projection as other formats split it; None where no other format is read."""
        return None

    def check_rotary_heads(self) -> None:
        """Raise ValueError if a head does not consist of pairs to rotate."""
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model {self.d_model} must be a multiple of 2 * {self.num_heads} heads (rotary pairs)"
            )

    def build(self, form: str, chunk_size: int | None) -> "MixerModule":
        """Build the torch module on torch's default device in its default dtype; its weights are not drawn yet.

        Raises:
            ConfigError: there is no such module or class.
        """
        module, _, name = self.implementation.partition(":")
        try:
            make: Callable[[Mixer, str, int | None], MixerModule] = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{self.title}: its implementation '{self.implementation}' cannot be imported: {error}."
            ) from error
        return make(self, form, chunk_size)


def missing_parts(kind: type[Mixer]) -> list[str]:
    """Return what a subclass must define and does not: its name, class variables, properties and methods."""
    names = ("title", "forms", "default_form", "implementation")
    missing = [name for name in names if not hasattr(kind, name)]
    if kind.model_fields["mixer"].is_required():
        missing.insert(0, "mixer")
    methods = (
        *("at_size", "streamed_params", "local_params", "state", "decode_flops", "training_flops"),
        *("prefill_flops", "decode_workspace", "kept_for_gradients"),
    )
    return missing + [name for name in methods if getattr_static(kind, name) is getattr_static(Mixer, name)]


def check_costs(mixer: Mixer) -> None:
    """Compute every analytical cost of a mixer once. What a method raises is passed on.

    Raises:
        ConfigError: a cost is no number from 0 on.
    """
    length, dtype = 64, "float32"
    found: list[tuple[str, object]] = [
        *((name, getattr(mixer, name)) for name in ("streamed_params", "local_params", "other_params")),
        ("decode_flops", mixer.decode_flops(length)),
        ("constant_flops", mixer.constant_flops(length)),
        ("decode_workspace", mixer.decode_workspace(dtype)),
        ("append_workspace", mixer.append_workspace(length)),
        ("prefill_workspace", mixer.prefill_workspace()),
    ]
    for form in mixer.forms:
        chunk = mixer.chunk_size(form, None)
        kept = mixer.kept_for_gradients(form)
        found.append(("training_flops", mixer.training_flops(length, form, chunk)))
        for last_only in (False, True):
            flops = mixer.prefill_flops(length, form, chunk, last_only=last_only)
            found.append(("prefill_flops", flops))
        found += [("kept_for_gradients", one) for one in (kept if isinstance(kept, KeptValues) else (kept,))]
    for name, value in found:
        if not is_amount(value):
            kind = type(mixer)
            raise ConfigError(
                f"{kind.__module__}.{kind.__name__}.{name} gives {shown(value)}, and a cost is a number from 0 on. "
                "Correct the package."
            )


def causal_pairs(context_len: int) -> int:
    """Return twice the number of pairs of a query and a key that is not after it."""
    return context_len * (context_len + 1)
