"""Sliding-window attention with sinks as a torch module."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from retbench.mixers.module import SoftmaxAttentionModule
from retbench.mixers.state import LayerState
from retbench.mixers.window_attention.config import WindowAttention
from retbench.ops import attention
from retbench.ops.position import Positions

BLOCK = 256
"""Queries that the form `blocks` takes at once."""


class WindowAttentionModule(SoftmaxAttentionModule):
    """Causal attention to a window and to sinks; grouped-query where num_kv_heads < num_heads.

    The token at position p is cached in slot p where p < sinks, else in slot sinks + (p - sinks) mod window. So the
    slots that are filled hold exactly the keys that the next query attends to, and a decode step needs no mask.

    Args:
        config: The mixer.
        form: blocks: blocks of queries, each with the keys that any of them sees; a decode step is one query of torch's
            scaled_dot_product_attention. products: the same, and a decode step is `ops.attention.attend_products`.
            auto: the faster of both. reference: every score, and a mask.
        chunk_size: The mixer has no chunks to choose.
    """

    config: WindowAttention
    _repeats_keys = False
    """True if blocks repeat shared keys, so that torch takes a kernel which holds no scores; set with `executed`."""

    def forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool = False
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or (B, 1, D) with `last_only`; `state` is advanced in place."""
        if state is not None and self.steps_fused(x):
            ring = {"sinks": self.config.sinks, "window": self.config.window}
            q = self.project_step(x, state, positions, **ring)
            out = self._attend_filled(q, state, positions.start, fused=True)
        else:
            out = self._forward(x, state, positions, last_only=last_only)
        mixed: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return mixed

    def _forward(
        self, x: Tensor, state: LayerState | None, positions: Positions, *, last_only: bool
    ) -> Tensor:
        """Attend with the eager operators; (B, H, T, K)."""
        start, end = positions.start, positions.start + x.shape[1]
        q, k, v = self.project(x, positions, last_only=last_only)  # (B, H or Hkv, T, K)
        if state is not None and x.shape[1] == 1:
            self._store(k, v, state, start)
            out = self._attend_filled(q, state, start, fused=False)
        else:
            keys, values, key_positions = self._with_cached(k, v, state, start)
            self._store(k, v, state, start)
            out = self._attend(q, keys, values, range(end - q.shape[2], end), key_positions)
        return out

    def _attend_filled(self, q: Tensor, state: LayerState, position: int, *, fused: bool) -> Tensor:
        """Attend from the token at `position`, which is cached, to all slots that are filled."""
        filled = min(position + 1, self.config.slots)
        keys, values = (state[name][:, :, :filled] for name in ("keys", "values"))
        backend = self.backend if self.backend in ("auto", "products") else "sdpa"
        if "decode" not in self.executed:  # asked once, so that a decode step does nothing for it
            chosen = attention.chosen_backend(backend, q, keys, self.products_from)
            kernel = attention.executed_kernel(chosen, q, keys, values).removeprefix("sdpa:")
            self.executed["decode"] = f"{'fused+' if fused else ''}ring:{kernel}"
        return attention.attend(backend, q, keys, values, self.products_from)

    def _slot(self, position: int) -> int:
        """Return the slot of the token at a position."""
        sinks, window = self.config.sinks, self.config.window
        if position < sinks:
            return position
        # Not (position - sinks) % window: for code of a GPU torch's compiler asks for the slot at position 0, and fails
        # where a remainder of less than 0 is taken.
        return sinks + (position + -sinks % window) % window

    def _held(self, start: int, end: int) -> list[int]:
        """Return which of the positions start .. end - 1 a cache holds whose last position is end - 1."""
        sinks, window = self.config.sinks, self.config.window
        return list(chain(range(start, min(end, sinks)), range(max(start, sinks, end - window), end)))

    def _with_cached(
        self, k: Tensor, v: Tensor, state: LayerState | None, start: int
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Return the keys and values that are cached and the new ones, with the position of each."""
        held = self._held(0, start) if state is not None else []
        new = range(start, start + k.shape[2])
        if state is None or not held:
            return k, v, list(new)
        slots = torch.tensor([self._slot(position) for position in held], device=k.device)
        cached = (state[name].index_select(2, slots) for name in ("keys", "values"))
        keys, values = (torch.cat(pair, dim=2) for pair in zip(cached, (k, v), strict=True))
        return keys, values, [*held, *new]

    def _store(self, k: Tensor, v: Tensor, state: LayerState | None, start: int) -> None:
        """Write keys and values (B, Hkv, T, K) from position `start` on, those that stay."""
        if state is None:
            return
        slot = self._slot(start)
        if k.shape[2] == 1 and torch.compiler.is_compiling():
            # torch asks whether a slice that is written lies at the start, and its code would serve only one answer.
            at = torch.full((1,), slot, device=k.device)
            state["keys"].index_copy_(2, at, k)
            state["values"].index_copy_(2, at, v)
            return
        if k.shape[2] == 1:
            state["keys"][:, :, slot : slot + 1] = k
            state["values"][:, :, slot : slot + 1] = v
            return
        kept = self._held(start, start + k.shape[2])
        slots = torch.tensor([self._slot(position) for position in kept], device=k.device)
        rows = torch.tensor(kept, device=k.device) - start
        state["keys"].index_copy_(2, slots, k.index_select(2, rows))
        state["values"].index_copy_(2, slots, v.index_select(2, rows))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, queries: range, key_positions: Sequence[int]
    ) -> Tensor:
        """Attend with queries at some positions to keys at others, in the form that was chosen.

        The keys are those of the sinks, from position 0 on, and then consecutive ones.

        Returns:
            (B, H, T, K).
        """
        at = torch.tensor(queries, device=q.device)
        keys_at = torch.tensor(key_positions, device=q.device)
        if self.backend == "reference":
            self.executed["prefill"] = self.backend
            return self._sdpa(q, k, v, self._mask(at, keys_at))
        num_keys = len(key_positions)
        num_sinks = min(self.config.sinks, num_keys)
        shift = num_sinks - key_positions[num_sinks] if num_sinks < num_keys else 0
        outs = []
        for first in range(0, len(queries), BLOCK):
            block = queries[first : first + BLOCK]
            end = min(num_keys, max(num_sinks, block[-1] + 1 + shift))
            begin = max(num_sinks, block[0] + 1 - self.config.window + shift)
            keys, values = (_without(item, num_sinks, begin, end, axis=2) for item in (k, v))
            mask = self._mask(at[first : first + BLOCK], _without(keys_at, num_sinks, begin, end, axis=0))
            asking = q[:, :, first : first + BLOCK]
            if "prefill" not in self.executed:
                kernel, self._repeats_keys = attention.masked_kernel(asking, keys, values, mask)
                self.executed["prefill"] = f"blocks:{kernel}"
            if self._repeats_keys:
                keys, values = (attention.repeat_keys(asking, each) for each in (keys, values))
            outs.append(self._sdpa(asking, keys, values, mask))
        return torch.cat(outs, dim=2)

    def _mask(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return which keys each query attends to, (T, S) bool, by their positions."""
        i, j = queries[:, None], keys[None]
        return (j <= i) & ((j > i - self.config.window) | (j < self.config.sinks))

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attend under a mask with torch's scaled_dot_product_attention."""
        grouped = k.shape[1] != q.shape[1]
        return attention.attend_fused(q, k, v, attn_mask=mask, enable_gqa=grouped)


def _without(x: Tensor, gap: int, begin: int, end: int, axis: int) -> Tensor:
    """Return entries 0 .. end - 1 of an axis without gap .. begin - 1, as a view where they are one piece."""
    if begin <= gap:
        return x.narrow(axis, 0, end)
    window = x.narrow(axis, begin, end - begin)
    return torch.cat([x.narrow(axis, 0, gap), window], dim=axis) if gap else window
