"""minGRU (arXiv:2410.01201, section 3.1): sizes, state and analytical costs. Imports no torch."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from retbench.mixers.mixer import Form, KeptValues, Mixer, SizeFields, StateTensor

CHUNK_SIZE = 16


class MinGru(Mixer):
    """h_t = (1 - z_t) h_{t-1} + z_t v_t with z_t = sigmoid(W_z x_t), v_t = W_v x_t; the output is W_o h_t."""

    mixer: Literal["min_gru"] = "min_gru"
    num_heads: int = Field(default=1, ge=1, le=1)

    title: ClassVar[str] = "minGRU"
    forms: ClassVar = {"chunkwise": Form("chunkwise"), "recurrent": Form("recurrent")}
    default_form: ClassVar[str] = "chunkwise"
    default_chunk_size: ClassVar[int] = CHUNK_SIZE
    implementation: ClassVar[str] = "min_gru.module:MinGruModule"

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> Self:
        """Return the mixer of a model size."""
        return cls.model_validate({"d_model": size.d_model, **fields})

    @property
    def streamed_params(self) -> int:
        """Parameters of W_z and W_v, whose results later tokens need."""
        return 2 * self.d_model**2

    @property
    def local_params(self) -> int:
        """Parameters of W_o."""
        return self.d_model**2

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The hidden state, in float32 or wider."""
        return (StateTensor("hidden", (self.d_model,), wide=True),)

    def chunk_size(self, form: str, asked: int | None) -> int | None:
        """Return the tokens of a chunk."""
        return (asked or CHUNK_SIZE) if form == "chunkwise" else None

    def decode_flops(self, context_len: int) -> int:
        """Return the operations of one step: two products and a sum for each channel."""
        return 3 * self.d_model

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the operations of a sequence; in chunks each token adds up those of its chunk up to itself."""
        per_token = 3 if chunk_size is None else chunk_size + 3
        return per_token * self.d_model * context_len

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the operations of a prompt, whose last hidden state needs all tokens."""
        return self.training_flops(context_len, form, chunk_size)

    def decode_workspace(self, dtype: str) -> int:
        """Return the values alive at once in a step: both projections, the gate, its complement and the state."""
        return 5 * self.d_model

    def kept_for_gradients(self, form: str) -> KeptValues:
        """Return what training keeps for each token: six vectors, and in chunks the weight of each earlier token."""
        return KeptValues(6 * self.d_model + (CHUNK_SIZE * self.d_model if form == "chunkwise" else 0))
