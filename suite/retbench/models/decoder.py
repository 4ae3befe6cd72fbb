"""A decoder-only language model of any architecture: embedding, blocks of mixers, norm, head."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retbench.architectures import costs
from retbench.architectures.configs import BlockConfig, ModelConfig, check_backend, form_of
from retbench.errors import UnsupportedError, unknown_name
from retbench.mixers.module import ChannelMixerModule, MixerModule, StatefulModule
from retbench.mixers.state import LayerState, allocate_state
from retbench.models.language_model import LanguageModel
from retbench.models.state import DecoderState
from retbench.ops import DecodeOperators, fused
from retbench.ops.fused import FusedSteps
from retbench.ops.layers import add_norm_step, make_norm, norm_step
from retbench.ops.linear import Linear, RowProducts
from retbench.ops.position import Positions
from retbench.ops.precision import wide_dtype

_QUADRATIC_KERNEL = "sdpa:math"
"""Kernel of torch that holds a score for every pair of tokens whatever the form, by its name in executed backends."""


class Block(FusedSteps):
    """x + mixer(norm(x)), followed by x + ffn(norm(x)) if the block has a channel mixer."""

    def __init__(self, config: ModelConfig, block: BlockConfig, backend: str, chunk_size: int | None) -> None:
        super().__init__()
        self.mixer_norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.mixer: MixerModule = block.mixer.build(form_of(block.mixer, backend), chunk_size)
        self.ffn_norm = make_norm(config.norm, config.d_model, config.norm_eps) if block.ffn else None
        self.ffn = block.ffn.build() if block.ffn else None
        self._layout = block.state

    def init_state(self, batch_size: int, capacity: int) -> LayerState:
        """Return the zero state; `capacity` tokens where a tensor has an entry for each token, up to its window."""
        weight = next(self.parameters())
        layout = self._layout
        if not self.mixer.reads_by_value:
            layout = tuple(replace(one, by_value=False) for one in layout)
        return allocate_state(layout, batch_size, capacity, weight, wide_dtype(weight.dtype))

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        if self.steps_fused(x) and not last_only:
            return self._step(x, state, positions)
        reads_back = isinstance(self.ffn, ChannelMixerModule)
        mixes_last_only = last_only and not reads_back
        mixed = self.mixer(self.mixer_norm(x), state, positions, last_only=mixes_last_only)
        x = (x[:, -1:] if mixes_last_only else x) + mixed
        if self.ffn is None or self.ffn_norm is None:
            return x
        fed = self._feed(self.ffn_norm(x), state, last_only=last_only)
        return (x[:, -1:] if last_only else x) + fed

    def _feed(self, x: Tensor, state: LayerState | None, *, last_only: bool = False) -> Tensor:
        """Apply the channel mixer to its normed input."""
        assert self.ffn is not None
        if not isinstance(self.ffn, ChannelMixerModule):
            return cast(Tensor, self.ffn(x))
        # The state of one pass, which other layers read a cache of, holds nothing for the next.
        kept = state if state is None or all(one.name in state.tensors for one in self._layout) else None
        out: Tensor = self.ffn(x, kept, last_only=last_only)
        return out

    def _step(self, x: Tensor, state: LayerState | None, positions: Positions) -> Tensor:
        """Compute one token by the fused operators, (B, 1, D) to (B, 1, D)."""
        mixed: Tensor = self.mixer(norm_step(self.mixer_norm, x), state, positions)
        if self.ffn is None or self.ffn_norm is None:
            return x + mixed
        x, normed = add_norm_step(self.ffn_norm, x, mixed)
        return x + self._feed(normed, state)


class Decoder(LanguageModel):
    """A language model: embedding, blocks, norm and head.

    Args:
        config: The model.
        backend: The forms of the mixers; see `configs.form_of`.
        chunk_size: Tokens per chunk of a chunkwise form; the mixer's default when None.

    Attributes:
        compute_dtype: Dtype of the operators' inputs where autocast makes it another one than that of the weights.
        activation_checkpointing: With gradients and without a state, keep only the input of each block, and recompute
            the block in the backward pass. Off by default.
    """

    def __init__(self, config: ModelConfig, backend: str, chunk_size: int | None = None) -> None:
        super().__init__()
        check_backend(config, backend)
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        norm = (config.norm, config.d_model, config.norm_eps)
        self.embedding_norm = make_norm(*norm) if config.embedding_norm else None
        self.blocks = nn.ModuleList(Block(config, block, backend, chunk_size) for block in config.layers)
        self._state_of = config.state_layers
        self._last_stateful = config.last_stateful
        self.encodings = nn.ModuleList()
        """Position encodings; blocks with equal mixers share one, and so do blocks that share a state."""
        self._encoding_of = self._share_encodings()
        self.compute_dtype: torch.dtype | None = None
        self.activation_checkpointing = False
        self.norm: nn.Module = make_norm(*norm)
        self.head = Linear(config.d_model, config.vocab_size)
        self.backend = backend

    def _share_encodings(self) -> list[int]:
        """Build one encoding per distinct mixer; return the index of each block's encoding."""
        mixers = [self.mixers[index] for index in self._state_of]
        first = {mixer.config: mixer for mixer in reversed(mixers)}
        kinds = list(dict.fromkeys(mixer.config for mixer in mixers))
        self.encodings.extend(first[kind].encoding() for kind in kinds)
        return [kinds.index(mixer.config) for mixer in mixers]

    @property
    def mixers(self) -> list[MixerModule]:
        """The mixer of each block."""
        return [block.mixer for block in self.blocks if isinstance(block, Block)]

    @property
    def stateful(self) -> list[StatefulModule]:
        """Each mixer, and each channel mixer that reads earlier tokens, in the order in which they run."""
        parts = (part for block in self.blocks for part in block.children())
        return [part for part in parts if isinstance(part, StatefulModule)]

    def backends(self) -> dict[str, str | None]:
        """Return every backend of the model with None if it can run here, else the reason why not."""
        return {name: self._missing_reason(name, self.device) for name in self.config.forms}

    def _missing_reason(self, name: str, device: torch.device) -> str | None:
        """Return why a backend cannot run on a device at the dtype of its inputs; None if it can."""
        dtype = self.compute_dtype or self.dtype
        first = {mixer.config: mixer for mixer in reversed(self.mixers)}
        # Checks the requested forms only: checking others may import packages that this process never needs.
        reasons = (
            mixer.missing_reason(form_of(config, name), device, dtype) for config, mixer in first.items()
        )
        return next((reason for reason in reasons if reason is not None), None)

    def other_backends(self) -> list[str]:
        """Return the backends that can run here and by which some mixer reads prompts in another form than now."""
        own = self._reading_forms(self.backend)
        return [
            name
            for name, reason in self.backends().items()
            if reason is None and self._reading_forms(name) != own
        ]

    def _reading_forms(self, backend: str) -> list[str]:
        """Return the form by which each mixer reads prompts with a backend."""
        dtype = self.compute_dtype or self.dtype
        return [mixer.reading_form(form_of(mixer.config, backend), dtype) for mixer in self.mixers]

    @property
    def is_quadratic(self) -> bool:
        """True if a form holds a score for every pair of tokens, or the last prompt ran by a kernel that does."""
        forms = {mixer.config.forms[mixer.backend].quadratic for mixer in self.mixers}
        executed = self.executed_backends().get("prefill", "")
        return True in forms or _QUADRATIC_KERNEL in executed.split("+")

    def check_runs(self, name: str, device: torch.device) -> None:
        """Raise UnsupportedError if a backend cannot run on a device at the dtype of its inputs."""
        reason = self._missing_reason(name, device)
        if reason is not None:
            raise UnsupportedError(f"{self.config.architecture} backend '{name}' cannot run here: {reason}.")

    def set_backend(self, name: str) -> None:
        """Set the form of every mixer.

        Raises:
            ConfigError: unknown name.
            UnsupportedError: it cannot run on this device at the dtype of its inputs.
        """
        check_backend(self.config, name)
        self.check_runs(name, self.device)
        for mixer in self.mixers:
            mixer.set_backend(form_of(mixer.config, name))
        self.backend = name

    def set_decode_operators(self, name: str) -> None:
        """Set the operators of every decode step, for all mixers and blocks alike.

        Raises:
            ConfigError: unknown name.
            UnsupportedError: they cannot run on this device at this dtype.
        """
        check_decode_operators(name, self.device, self.dtype)
        for module in self.modules():
            if isinstance(module, FusedSteps):
                module.fused = name == "fused"
        self.decode_operators = name

    def set_row_products(self, products: RowProducts) -> None:
        """Set how few rows are multiplied on a CPU, for all weights and all caches alike; see `ops.linear`."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.row_products = products
        for mixer in self.mixers:
            mixer.products_from = products.attention_from

    @property
    def weight_product(self) -> str:
        """Products of few rows with the weights in an eager step on a CPU: `ops.linear.RowProducts.description`."""
        return self.head.row_products.description

    def compiled_product(self, rows: int) -> str:
        """Return how compiled steps multiply so many rows by weights: by a loop, by onednn or by torch's product."""
        return self.head.compiled_product(rows)

    def store_weights(self, *, by_output: bool) -> None:
        """Store the weights of all projections (out, in) or (in, out) in memory; their values stay."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.store(by_output=by_output)

    @property
    def weight_layout(self) -> str:
        """Order in memory of the weights of projections: out,in or in,out."""
        return "out,in" if self.head.weight.is_contiguous() else "in,out"

    def executed_backends(self) -> dict[str, str]:
        """Return the form or kernel executed in each phase (prefill, decode) since the backend was set."""
        found: dict[str, set[str]] = {}
        for mixer in self.mixers:
            for phase, name in mixer.executed.items():
                found.setdefault(phase, set()).add(name)
        return {phase: "+".join(sorted(names)) for phase, names in sorted(found.items())}

    def init_state(self, batch_size: int, capacity: int) -> DecoderState:
        """Return an empty state for `batch_size` sequences; key-value caches have room for `capacity` tokens.

        A cache of a window has no more room than the window. With a capacity of 0 it has the whole window, which any
        number of tokens fits into.
        """
        blocks = (block for block in self.blocks if isinstance(block, Block))
        return DecoderState([block.init_state(batch_size, capacity) for block in blocks])

    def state_bytes(self, batch_size: int, capacity: int) -> int:
        """Return the bytes of such a state, from the analytical costs."""
        return costs.state_bytes(self.config, str(self.dtype).removeprefix("torch."), batch_size, capacity)

    def forward(
        self,
        tokens: Tensor,
        state: DecoderState | None = None,
        *,
        last_only: bool = False,
        at: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of the following tokens.

        Args:
            tokens: (B, T) int64. One token with a state and without gradients is a decode step.
            state: Advanced in place by T tokens; None starts at position 0 and keeps no state.
            last_only: Compute logits of the last token only. For other tokens the last block with a state then computes
                only what later tokens need (keys, values and state), and the blocks after it compute nothing.
            at: (B, T) bool; compute logits of these M tokens only.

        Returns:
            (B, T, N), or (B, 1, N) with `last_only`, or (M, N) with `at`.

        Raises:
            CapacityError: the state has no room for T more tokens; nothing was changed.
        """
        features = self.features(tokens, state, last_only=last_only)
        return self.logits_of(features if at is None else features[at])

    def logits_of(self, features: Tensor) -> Tensor:
        """Compute the logits (..., N) of any rows of features (..., D)."""
        logits: Tensor = self.head(features)
        return logits

    def features(
        self, tokens: Tensor, state: DecoderState | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Compute the input of the head, (B, T, D) or (B, 1, D); arguments and errors as of `forward`.

        Apply `logits_of` to any of its rows to get the logits of some tokens only.
        """
        normed: Tensor = self.norm(self._run_blocks(len(self.blocks), tokens, state, last_only=last_only))
        return normed

    def _run_blocks(
        self, count: int, tokens: Tensor, state: DecoderState | None, *, last_only: bool
    ) -> Tensor:
        """Run the first `count` blocks; return the output of the last of them, (B, T, D) or (B, 1, D)."""
        length = tokens.shape[1]
        if state is not None:
            state.require_room(length)
        layers = self._pass_states(len(tokens)) if state is None else state.layers
        start = state.position if state is not None else 0
        encoded = self._encode(start, length)
        x: Tensor = self.embedding(tokens)  # (B, T, D)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        for index, block in enumerate(islice(self.blocks, count)):
            layer = layers[self._state_of[index]]
            only_last = last_only and index >= self._last_stateful and length > 1
            positions = encoded[self._encoding_of[index]]
            if self.activation_checkpointing and state is None and torch.is_grad_enabled():
                # A block uses no random numbers, so no generator state has to be restored.
                x = checkpoint(
                    block,
                    x,
                    layer,
                    positions,
                    last_only=only_last,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                x = block(x, layer, positions, last_only=only_last)
        if state is not None:
            state.position += length
        return x

    def _pass_states(self, batch_size: int) -> Sequence[LayerState | None]:
        """Return for a pass without a state one per block whose state later blocks read, and None for the others."""
        read = {owner for index, owner in enumerate(self._state_of) if owner != index}
        return [
            mixer.init_pass_state(batch_size) if index in read else None
            for index, mixer in enumerate(self.mixers)
        ]

    def _encode(self, start: int, length: int) -> list[Positions]:
        """Return what each distinct mixer needs of positions start .. start + length - 1."""
        encoded = [encoding(start, length, self.dtype) for encoding in self.encodings]
        if self.decode_operators == "fused" and length == 1:
            on_device = torch.full((1,), start, dtype=torch.int64, device=self.device)
            encoded = [positions._replace(on_device=on_device) for positions in encoded]
        return encoded

    @torch.no_grad()
    def prefill(
        self, tokens: Tensor, state: DecoderState, *, segment_len: int = costs.PREFILL_SEGMENT
    ) -> Tensor:
        """Process a prompt (B, T) in segments of bounded workspace; return the logits (B, 1, N) of its last token."""
        state.require_room(tokens.shape[1])
        *earlier, last = tokens.split(segment_len, dim=1)
        for segment in earlier:
            self._run_blocks(self._last_stateful + 1, segment, state, last_only=True)
        logits: Tensor = self(last, state, last_only=True)
        return logits


def check_decode_operators(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ConfigError for an unknown name, and UnsupportedError for operators that cannot run on a device."""
    names = get_args(DecodeOperators)
    if name not in names:
        raise unknown_name("decode operators", name, names)
    reason = fused.missing_reason(device, dtype) if name == "fused" else None
    if reason is not None:
        raise UnsupportedError(f"decode operators '{name}' cannot run here: {reason}.")
