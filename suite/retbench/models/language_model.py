"""The interface of a language model to workloads, evaluation and the equivalence check."""

import torch
from torch import Tensor, nn

from retbench.architectures.configs import ModelConfig
from retbench.architectures.costs import PREFILL_SEGMENT
from retbench.models.state import DecoderState
from retbench.ops.linear import RowProducts


class LanguageModel(nn.Module):
    """Base of the models that are measured: (B, T) tokens to logits, with a state that is advanced in place.

    A subclass implements everything that raises NotImplementedError here.

    Attributes:
        config: The model.
        backend: The form or attention kernel that was asked for.
        decode_operators: Operators of decode steps: fused or eager.
        max_positions: Most tokens that the model can read; None without a limit.
    """

    config: ModelConfig
    backend: str
    decode_operators = "eager"
    max_positions: int | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def weight_product(self) -> str:
        """Products of few rows with the weights in an eager step on a CPU: `ops.linear.RowProducts.description`."""
        return "torch"

    def set_row_products(self, products: RowProducts) -> None:
        """Set how few rows are multiplied on a CPU, for all weights alike, unless their layers are torch's own."""

    @property
    def weight_layout(self) -> str:
        """Order in memory of the weights of projections: out,in as in torch's own layers, or in,out."""
        return "out,in"

    def store_weights(self, *, by_output: bool) -> None:
        """Store the weights of projections (out, in) or (in, out) in memory, unless they are layers of torch's own."""

    def compiled_product(self, rows: int) -> str:
        """Return how compiled steps multiply so many rows by weights: by a loop, by onednn or by torch's product."""
        return "torch"

    @property
    def is_quadratic(self) -> bool:
        """True if the form for a prompt may hold a score for every pair of tokens."""
        raise NotImplementedError

    def set_backend(self, name: str) -> None:
        """Choose the backend, and forget which kernels were executed; ConfigError for an unknown name."""
        raise NotImplementedError

    def other_backends(self) -> list[str]:
        """Return the backends that can run here and compute prompts in another way than the present one."""
        raise NotImplementedError

    def executed_backends(self) -> dict[str, str]:
        """Return the form or kernel executed in each phase (prefill, decode) since the backend was set."""
        raise NotImplementedError

    @property
    def executed_names(self) -> str:
        """The forms and kernels executed since the backend was set, of all phases: 'chunkwise+sdpa'."""
        return "+".join(sorted(set(self.executed_backends().values())))

    def init_state(self, batch_size: int, capacity: int) -> DecoderState:
        """Return an empty state for `batch_size` sequences; key-value caches have room for `capacity` tokens."""
        raise NotImplementedError

    def state_bytes(self, batch_size: int, capacity: int) -> int:
        """Return the bytes of such a state."""
        raise NotImplementedError

    def features(
        self, tokens: Tensor, state: DecoderState | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Compute what `logits_of` turns into logits, (B, T, D) or (B, 1, D); arguments as of `forward`."""
        raise NotImplementedError

    def logits_of(self, features: Tensor) -> Tensor:
        """Compute the logits (..., N) of any rows of features (..., D)."""
        raise NotImplementedError

    @torch.no_grad()
    def prefill(self, tokens: Tensor, state: DecoderState, *, segment_len: int = PREFILL_SEGMENT) -> Tensor:
        """Process a prompt (B, T) in segments of bounded workspace; return the logits (B, 1, N) of its last token."""
        state.require_room(tokens.shape[1])
        for segment in tokens.split(segment_len, dim=1):
            logits: Tensor = self(segment, state, last_only=True)
        return logits
