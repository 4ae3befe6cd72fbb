"""Compiled decode steps: code of one model for one batch size, which serves every depth."""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retbench.measure.compiled import Compiled, compile_step, is_recompile
from retbench.measure.limits import lift_limit
from retbench.measure.products import packing_is_faster
from retbench.mixers.state import TOKEN_AXIS
from retbench.models.language_model import LanguageModel
from retbench.models.state import DecoderState

_PACKED = "packed"


@dataclass(frozen=True)
class CompiledStep:
    """A decode step that is compiled and ready.

    Attributes:
        run: Takes tokens (B, 1) and a state, which it advances; returns the logits, (B, 1, N).
        logits: Those of the run that made it ready.
        seconds: Wall time of the compilation that made its code.
        product: How it multiplies by weights: as `LanguageModel.compiled_product` says, or by packed ones.
    """

    run: Callable[[Tensor, DecoderState], Tensor]
    logits: Tensor
    seconds: float
    product: str

    @property
    def packs_weights(self) -> bool:
        """True if the code holds the weights once more, packed for its products."""
        return self.product == _PACKED


class StepCompiler:
    """Compiles the decode steps of a model, and compiles anew only where no code at hand fits.

    The position and the length of a key-value cache are symbolic in the code; the batch size is not, and neither is
    whether a window is full.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._batch_size = 0
        self._compiled: list[Compiled[Tensor]] = []

    def prepare(self, tokens: Tensor, state: DecoderState) -> CompiledStep:
        """Make the step of tokens (B, 1) from a state ready, and run it once.

        The step was run eagerly before.

        Raises:
            UnsupportedError: torch cannot compile the step on this machine.
        """
        batch_size = tokens.shape[0]
        product = self.product_of(batch_size)
        if batch_size != self._batch_size and self._compiled:
            # Their code would be kept as long as the process lives.
            torch.compiler.reset()
            gc.unfreeze()  # a worker hides from the collector what it keeps between cells
            self._compiled = []
        for compiled in self._compiled:
            logits = _run_if_it_fits(compiled, tokens, state)
            if logits is not None:
                return CompiledStep(compiled.run, logits, compiled.seconds, product)
        with lift_limit():  # the compiler takes more than a small model and its state do
            _mark_symbolic(tokens, state)
            compiled = compile_step(self._model.__call__, tokens, state, packs_weights=product == _PACKED)
        self._compiled.append(compiled)
        self._batch_size = batch_size
        return CompiledStep(compiled.run, compiled.first, compiled.seconds, product)

    def product_of(self, batch_size: int) -> str:
        """Return how steps of a batch multiply: by packed weights on a CPU where that beats torch's product."""
        product = self._model.compiled_product(batch_size)
        if self._model.device.type != "cpu" or product != "torch":
            return product
        return _PACKED if packing_is_faster(batch_size, self._model.dtype) else product


def _run_if_it_fits(compiled: Compiled[Tensor], tokens: Tensor, state: DecoderState) -> Tensor | None:
    """Run code that was compiled for another depth; None where it does not fit this one."""
    try:
        return compiled.run(tokens, state)
    except RuntimeError as error:
        if not is_recompile(error):
            raise
        return None


def _mark_symbolic(tokens: Tensor, state: DecoderState) -> None:
    """Mark every dimension static except the length of tensors that have an entry for each token."""
    torch._dynamo.mark_static(tokens)
    for layer in state.layers:
        growing = layer.names("per_token")
        for name, tensor in layer.tensors.items():
            axes = [axis for axis in range(tensor.dim()) if name not in growing or axis != TOKEN_AXIS]
            torch._dynamo.mark_static(tensor, axes)
