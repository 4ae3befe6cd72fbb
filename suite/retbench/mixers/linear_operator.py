"""Sizes and costs that all mixers of the linear operator share: o_t = q_t S_t, S_t = decay S_{t-1} + k_t^T v_t."""

from typing import ClassVar

from retbench.mixers.mixer import Form, Mixer, StateTensor, causal_pairs

SEGMENT = 1024
"""Tokens of a prompt that the parallel form takes as one chunk: those of a segment, `costs.PREFILL_SEGMENT`."""


class LinearOperator(Mixer):
    """A mixer whose state is S, (H, K, V), one matrix per head of values."""

    forms: ClassVar = {
        "parallel": Form("parallel", quadratic=True),
        "chunkwise": Form("chunkwise"),
        "chunkwise_fp32": Form("chunkwise"),
        "recurrent": Form("recurrent"),
    }
    default_form: ClassVar[str] = "chunkwise"
    default_chunk_size: ClassVar[int | None] = 128

    @property
    def value_head_dim(self) -> int:
        """V, the width of a value head in the state."""
        return self.head_dim

    @property
    def num_key_heads(self) -> int:
        """Heads of queries and keys, each of which serves num_heads / num_key_heads neighbouring heads of values."""
        return self.num_heads

    @property
    def _width_of_pair(self) -> int:
        """Multiply-adds per pair of tokens: a score for each head of queries, and a sum of values."""
        return self.num_key_heads * self.head_dim + self.num_heads * self.value_head_dim

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """S, (H, K, V).

        By value, compiled steps of 25M took 0.92 of the time for RetNet and 0.67 to 0.79 with eight sequences in
        bfloat16, 0.90 to 1.00 for linear attention, GLA and RWKV-6, and eager ones as long, on an AMD EPYC.
        """
        shape = self.num_heads, self.head_dim, self.value_head_dim
        return (StateTensor("values", shape, wide=True, by_value=True),)

    def chunk_size(self, form: str, asked: int | None) -> int | None:
        """Return the chunk of the chunkwise form."""
        return asked or self.default_chunk_size

    def _counted_chunk(self, form: str, asked: int | None) -> int | None:
        """Return the chunk that a form's operations are counted by: 1 for the recurrent, None for the parallel."""
        return {"parallel": None, "recurrent": 1}.get(form, self.chunk_size(form, asked))

    def decode_flops(self, context_len: int) -> int:
        """Return the operations of one token: decay and rank-one update (3 per value of S), the read-out (2)."""
        return 5 * self.num_heads * self.head_dim * self.value_head_dim

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the products of a form; the parallel form is counted causal, like attention."""
        key_dim, value_dim = self.head_dim, self.value_head_dim
        chunk = self._counted_chunk(form, chunk_size)
        if chunk is None:
            return self._width_of_pair * causal_pairs(context_len)
        whole, rest = divmod(context_len, chunk)
        inside = 2 * (whole * chunk**2 + rest**2) * self._width_of_pair
        written = context_len - (rest or chunk)  # tokens of all chunks but the last
        read = max(0, context_len - chunk)  # and of all but the first
        return inside + self.num_heads * 2 * (written + read) * key_dim * value_dim

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the products of one prompt; the blocks on the diagonal are counted whole, as they are computed."""
        key_dim, value_dim = self.head_dim, self.value_head_dim
        update = 2 * key_dim * value_dim  # and as much for a read-out of the state
        if last_only:
            return self.num_heads * (context_len + 1) * update
        chunk = self._counted_chunk(form, chunk_size)
        inside = 2 * min(chunk or SEGMENT, SEGMENT, context_len) * self._width_of_pair
        return context_len * (inside + self.num_heads * 2 * update)


class ChannelDecayOperator(LinearOperator):
    """A linear operator whose decay differs between the channels of a key.

    Its chunks compute the products of queries and keys of blocks below the diagonal only; see
    `retbench.ops.linear_chunk.vector_terms`.
    """

    def training_flops(self, context_len: int, form: str, chunk_size: int | None) -> int:
        """Return the products of a form; queries and keys are multiplied for causal pairs only."""
        flops = super().training_flops(context_len, form, chunk_size)
        chunk = self._counted_chunk(form, chunk_size)
        return flops if chunk is None else flops - self._unneeded_scores(context_len, chunk)

    def prefill_flops(self, context_len: int, form: str, chunk_size: int | None, *, last_only: bool) -> int:
        """Return the products of one prompt; of those of queries and keys only the causal ones are computed."""
        flops = super().prefill_flops(context_len, form, chunk_size, last_only=last_only)
        if last_only:
            return flops
        chunk = self._counted_chunk(form, chunk_size) or SEGMENT
        return flops - self._unneeded_scores(context_len, min(chunk, SEGMENT))

    def _unneeded_scores(self, context_len: int, chunk: int) -> int:
        """Return the operations of the products above the diagonals of all chunks."""
        whole, rest = divmod(context_len, chunk)
        pairs = whole * chunk * (chunk - 1) + rest * (rest - 1)
        return self.num_heads * self.head_dim * pairs
