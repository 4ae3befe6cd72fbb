"""Comparison of passes with a reference pass, mixer by mixer, where every mixer gets its inputs of the reference pass.

A channel mixer that reads earlier tokens is compared like a mixer, and counts as one below.

In 16-bit dtypes the logits of a deep RetNet cannot distinguish equivalent forms from wrong ones. At token 0 retention
is (q_0 k_0) v_0, of which the head norm keeps v_0 and the sign of q_0 k_0. If that product nearly vanishes, rounding in
lower layers decides the sign, and two equivalent forms diverge from there on; a test demonstrates it. So every pass
gives a mixer the same inputs, and the outputs of its operator are compared before that norm, which would also amplify
rounding of a vanishing product. The rest of a block works token by token and depends on neither form nor state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from retbench.models.decoder import Decoder
from retbench.models.state import DecoderState
from retbench.ops.position import Positions

LIMITS = {torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest `head_error` by dtype. On a CPU `retbench verify MODEL --size 200m --dtype bfloat16` measures at most 0.005
for the Transformer, and for RetNet 0.001 with products in float32; with products in bfloat16 it is 0.009 (25m). The
defects in the tests give 0.18 and more. The margin is for kernels with more intermediate rounding than a CPU's."""


class MixerComparison:
    """Reference pass: the inputs of its mixers and the outputs of their operators.

    Memory: D values per token and layer, and all heads' outputs of each kept token.

    Args:
        model: The model.
        tokens: Tokens of the reference pass, (1, T) int64.
        state: An empty state, which the pass advances.
        kept: Number of leading tokens whose outputs are kept; later tokens are compared by the state only.
    """

    def __init__(self, model: Decoder, tokens: Tensor, state: DecoderState, kept: int) -> None:
        self.limit = LIMITS[model.dtype]
        self._model, self._kept = model, kept
        self._inputs: list[Tensor] = []  # of each mixer, (1, T, D)
        self._outs: list[Tensor] = []  # of each mixer, (1, H, kept, V)

        def enter(layer: int, x: Tensor, positions: Positions | None) -> Tensor:
            self._inputs.append(x)
            return x

        def leave(layer: int, out: Tensor) -> None:
            self._outs.append(self._heads(layer, out[:, :kept]).clone())  # frees the rest

        with _hooks(model, enter, leave):
            model.features(tokens, state)

    def error(self, run: Callable[[], object], start: int, end: int) -> float:
        """Return the largest `head_error` in any mixer of a run over tokens start .. end - 1; 0 for tokens not kept.

        The run may use any segments. A mixer that computes only its last token is compared at that token.
        """
        ends = [start] * len(self._inputs)  # position that each mixer has reached
        errors = [0.0]

        def enter(layer: int, x: Tensor, positions: Positions | None) -> Tensor:
            # A mixer after the last state is left out of earlier segments; a channel mixer with a state never is.
            reached = ends[layer] if positions is None else positions.start + positions.length - x.shape[1]
            ends[layer] = reached + x.shape[1]
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
        """Return the largest `head_error` of any layer: per token of a cache, over the whole of a fixed state."""
        errors = []
        for one, other in zip(found.layers, reference.layers, strict=True):
            expected = other.used(reference.position)
            for name, tensor in one.used(found.position).items():
                pair = tensor, expected[name]
                if one.layout[name].kind == "fixed":
                    # (1, H, 1, K V); a state of one axis, (1, D), counts as one head
                    heads = tensor.shape[1] if tensor.dim() > 2 else 1
                    pair = pair[0].reshape(1, heads, 1, -1), pair[1].reshape(1, heads, 1, -1)
                errors.append(head_error(*pair, pair[1]))
        return max(errors)

    def _heads(self, layer: int, out: Tensor) -> Tensor:
        """Return the output of an operator, (1, T, H, V) or (1, T, H V), as (1, H, T, V)."""
        return out.view(1, out.shape[1], self._model.stateful[layer].operator_heads, -1).transpose(1, 2)


def head_error(found: Tensor, reference: Tensor, whole: Tensor) -> float:
    """Return the largest |found - reference| of any head at any token, as vectors, relative to the reference's size.

    The size is the reference's norm, but at least the root mean square of the norms over all tokens of the head, so a
    token with a vanishing product does not count. A single wrong head or token is found as reliably as a wrong pass.

    Args:
        found: (1, H, T, V).
        reference: (1, H, T, V).
        whole: The reference at all tokens, (1, H, S, V).

    Returns:
        The error; infinity if any value is not finite.
    """
    usual = _norms(whole).square().mean(dim=-1, keepdim=True).sqrt()  # (1, H, 1)
    size = _norms(reference).maximum(usual).clamp_min(1e-300)
    error = float((_norms(found.double() - reference.double()) / size).max())
    return error if error == error else float("inf")


def _norms(x: Tensor) -> Tensor:
    """Return the norm of each vector along the last axis, in float64."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    return norms


def _positions(args: tuple[object, ...]) -> Positions | None:
    """Return the positions among the arguments of a mixer; None for a channel mixer."""
    return next((one for one in args if isinstance(one, Positions)), None)


@contextmanager
def _hooks(
    model: Decoder,
    enter: Callable[[int, Tensor, Positions | None], Tensor],
    leave: Callable[[int, Tensor], None],
) -> Iterator[None]:
    """Replace the input of every mixer by `enter(layer, input, positions)`; pass its operator's output to `leave`.

    Channel mixers with a state are among them; they get no positions.
    """
    handles = []
    try:
        for layer, mixer in enumerate(model.stateful):
            handles.append(
                mixer.register_forward_pre_hook(
                    lambda _, args, layer=layer: (enter(layer, args[0], _positions(args)), *args[1:])
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
