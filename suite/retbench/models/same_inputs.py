"""Passes of a model held against one whole pass mixer by mixer, every mixer from the inputs that it had there.

In two bytes the logits of a deep RetNet do not tell equal forms from different ones. At token 0 the retention is
(q_0 k_0) v_0, of which the norm of the head leaves v_0 and the sign of q_0 k_0. Where that product nearly vanishes, the
rounding of the layers below decides the sign, and from there on two equal forms part; a test shows it. So all passes
give a mixer the same inputs, and what is compared is what its operator gives ahead of that norm, which blows up what
a vanishing product has of rounding from the same inputs too. All that follows in a block is done token by token and
knows neither form nor state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from retbench.models.decoder import Decoder
from retbench.models.state import DecoderState

LIMITS = {torch.bfloat16: 0.1, torch.float16: 0.02}
"""By dtype, for `head_error`. On a CPU `retbench verify MODEL --size 200m --dtype bfloat16` finds at most 0.001 of
RetNet and 0.005 of the Transformer; the defects in the tests of the gate give 0.18 and more. There is room for kernels
that round more in between than a CPU's."""


class MixerComparison:
    """A whole pass to hold others against: the inputs of its mixers and what their operators made of them.

    Memory: D values for each token and layer, and for each token kept as many as the heads give.

    Args:
        model: The model.
        tokens: Those of the whole pass, (1, T) int64.
        state: An empty one, which the pass advances.
        kept: Tokens whose outputs are kept; of those behind them the state alone can be compared.
    """

    def __init__(self, model: Decoder, tokens: Tensor, state: DecoderState, kept: int) -> None:
        self.limit = LIMITS[model.dtype]
        self._model, self._kept = model, kept
        self._inputs: list[Tensor] = []  # of each layer, (1, T, D)
        self._outs: list[Tensor] = []  # of each layer, (1, H, kept, V)

        def enter(layer: int, x: Tensor) -> Tensor:
            self._inputs.append(x)
            return x

        def leave(layer: int, out: Tensor) -> None:
            self._outs.append(self._heads(layer, out[:, :kept]).clone())  # the rest is let go

        with _hooks(model, enter, leave):
            model.features(tokens, state)

    def error(self, run: Callable[[], object], start: int, end: int) -> float:
        """Largest `head_error` in any mixer of a run over the tokens start .. end - 1; 0 of tokens that are not kept.

        The model may go through them in any segments; a mixer that is asked for its last token is compared there.
        """
        ends = [start] * len(self._inputs)  # how far each mixer has come
        errors = [0.0]

        def enter(layer: int, x: Tensor) -> Tensor:
            ends[layer] += x.shape[1]
            return self._inputs[layer][:, ends[layer] - x.shape[1] : ends[layer]]

        def leave(layer: int, out: Tensor) -> None:
            last, whole = ends[layer], self._outs[layer]
            if last <= self._kept:
                expected = whole[:, :, last - out.shape[1] : last]
                errors.append(head_error(self._heads(layer, out), expected, whole))

        with _hooks(self._model, enter, leave):
            run()
        assert set(ends) == {end}
        return max(errors)

    def state_error(self, found: DecoderState, reference: DecoderState) -> float:
        """Largest `head_error` in any layer of a state: of a cache at any token, of a retention state as a whole."""
        errors = []
        for one, other in zip(found.layers, reference.layers, strict=True):
            expected = other.used(reference.position)
            for name, tensor in one.used(found.position).items():
                pair = tensor, expected[name]
                if one.layout[name].kind == "fixed":
                    pair = pair[0].flatten(2)[:, :, None], pair[1].flatten(2)[:, :, None]  # (1, H, 1, K V)
                errors.append(head_error(*pair, pair[1]))
        return max(errors)

    def _heads(self, layer: int, out: Tensor) -> Tensor:
        """Return what an operator gives, (1, T, H, V) or (1, T, H V), as (1, H, T, V)."""
        return out.view(1, out.shape[1], self._model.mixers[layer].config.num_heads, -1).transpose(1, 2)


def head_error(found: Tensor, reference: Tensor, whole: Tensor) -> float:
    """Largest |found - reference| of a head at a token, as vectors, over the size of that reference.

    The size is its norm, but at least the root mean square of the norms of all the head's tokens: the one at which a
    product vanishes says nothing. By head and by token, so that one alone that is wrong shows as well as all of them.

    Args:
        found: (1, H, T, V).
        reference: (1, H, T, V).
        whole: The reference at all tokens, (1, H, S, V).

    Returns:
        The error; infinite where anything is not finite.
    """
    usual = _norms(whole).square().mean(dim=-1, keepdim=True).sqrt()  # (1, H, 1)
    size = _norms(reference).maximum(usual).clamp_min(1e-300)
    error = float((_norms(found.double() - reference.double()) / size).max())
    return error if error == error else float("inf")


def _norms(x: Tensor) -> Tensor:
    """The norm of each vector of the last axis, in float64."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    return norms


@contextmanager
def _hooks(
    model: Decoder, enter: Callable[[int, Tensor], Tensor], leave: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Inside, every mixer gets what `enter` makes of its input, and `leave` what its operator gives; by layer."""
    handles = []
    try:
        for layer, mixer in enumerate(model.mixers):
            handles.append(
                mixer.register_forward_pre_hook(
                    lambda _, args, layer=layer: (enter(layer, args[0]), *args[1:])
                )
            )
            handles.append(
                mixer.after_operator.register_forward_pre_hook(
                    lambda _, args, layer=layer: leave(layer, args[0])
                )
            )
        yield
    finally:
        for handle in handles:
            handle.remove()
