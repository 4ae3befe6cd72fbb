"""A decoder-only language model: embedding, blocks, norm, head. It knows no architecture; its blocks do."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retbench.architectures.configs import ModelConfig
from retbench.architectures.costs import PREFILL_SEGMENT
from retbench.errors import UnsupportedError
from retbench.models.layers import make_feed_forward, make_norm
from retbench.models.linear import Linear
from retbench.models.mixers import Mixer
from retbench.models.state import DecoderState, LayerState
from retbench.ops.position import Positions, Rotary


class Block(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: ModelConfig, mixer: Mixer) -> None:
        super().__init__()
        self.mixer_norm = make_norm(config)
        self.mixer: Mixer = mixer
        self.ffn_norm = make_norm(config)
        self.ffn = make_feed_forward(config)

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        mixed = self.mixer(self.mixer_norm(x), state, positions, last_only=last_only)
        x = (x[:, -1:] if last_only else x) + mixed
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out


class Decoder(nn.Module):
    """A language model over any blocks.

    Args:
        config: The model.
        blocks: Its blocks, in order.
        rotary: What the mixers need of a position; all blocks share one set.

    Attributes:
        activation_checkpointing: With gradients and without a state, keep only what enters each block, and run it
            again when its gradients are computed. Off when built.
    """

    def __init__(self, config: ModelConfig, blocks: list[Block], rotary: Rotary) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(blocks)
        self.rotary = rotary
        self.activation_checkpointing = False
        self.norm = make_norm(config)
        self.head = Linear(config.d_model, config.vocab_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.embedding.weight.dtype

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of each block."""
        return [block.mixer for block in self.blocks if isinstance(block, Block)]

    @property
    def backend(self) -> str:
        """The form or backend asked for."""
        return self.mixers[0].backend

    def backends(self) -> dict[str, str | None]:
        """Every form or backend of this architecture: None where usable here, else the reason why not."""
        return self.mixers[0].backends(self.device, self.dtype)

    def set_backend(self, name: str) -> None:
        """Choose the form or backend of every mixer.

        Raises:
            ConfigError: unknown name.
            UnsupportedError: it cannot run on this device at this dtype.
        """
        # Of this one alone: to look at others may mean to import what this process never needs.
        reason = self.mixers[0].missing_reason(name, self.device, self.dtype)
        if reason is not None:
            raise UnsupportedError(f"{self.config.architecture} backend '{name}' cannot run here: {reason}.")
        for mixer in self.mixers:
            mixer.set_backend(name)

    def ran(self) -> dict[str, str]:
        """What ran since the backend was set, as the mixers say: phase (prefill, decode) to form or kernel."""
        found: dict[str, set[str]] = {}
        for mixer in self.mixers:
            for phase, name in mixer.ran.items():
                found.setdefault(phase, set()).add(name)
        return {phase: "+".join(sorted(names)) for phase, names in sorted(found.items())}

    def init_state(self, batch_size: int, capacity: int) -> DecoderState:
        """An empty state for `batch_size` sequences; `capacity` tokens where a layer has a key-value cache."""
        return DecoderState([mixer.init_state(batch_size, capacity) for mixer in self.mixers])

    def forward(
        self, tokens: Tensor, state: DecoderState | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Logits of the tokens that follow.

        Args:
            tokens: (B, T) int64. One token with a state and without gradients is a decode step, O(1) for retention.
            state: Advanced in place by T tokens; None starts at position 0 and keeps nothing.
            last_only: Logits of the last token only; of the last block, the other tokens then get no more than what
                later tokens need of them: keys, values and state.

        Returns:
            (B, T, N), or (B, 1, N) with `last_only`.

        Raises:
            CapacityError: the state has no room for T more tokens; nothing was changed.
        """
        logits: Tensor = self.head(self.features(tokens, state, last_only=last_only))
        return logits

    def features(
        self, tokens: Tensor, state: DecoderState | None = None, *, last_only: bool = False
    ) -> Tensor:
        """What the head turns into logits, (B, T, D) or (B, 1, D); arguments and errors as of `forward`.

        Where logits are wanted of some tokens only, or a part at a time, `head` takes any rows of it.
        """
        length = tokens.shape[1]
        if state is not None:
            state.require_room(length)
        positions = self.rotary(state.position if state is not None else 0, length, self.dtype)
        x = self.embedding(tokens)  # (B, T, D)
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            layer = state.layers[index] if state is not None else None
            only_last = last_only and index == last and length > 1
            if self.activation_checkpointing and state is None and torch.is_grad_enabled():
                # Nothing in a block is random, so there is no state of a generator to go back to.
                x = checkpoint(
                    block,
                    x,
                    None,
                    positions,
                    last_only=only_last,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                x = block(x, layer, positions, last_only=only_last)
        if state is not None:
            state.position += length
        normed: Tensor = self.norm(x)
        return normed

    @torch.no_grad()
    def prefill(self, tokens: Tensor, state: DecoderState, *, segment_len: int = PREFILL_SEGMENT) -> Tensor:
        """Feed a prompt (B, T) in segments, so that workspace does not grow with it; logits (B, 1, N) of its end."""
        state.require_room(tokens.shape[1])
        for segment in tokens.split(segment_len, dim=1):
            logits: Tensor = self(segment, state, last_only=True)
        return logits
