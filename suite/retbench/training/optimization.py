"""Parts of an optimiser step: the loss, AdamW, gradient clipping, and the check that a run has not diverged."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from retbench.config.training import Recipe
from retbench.data.batches import IGNORED, Examples
from retbench.data.packing import PackedTokens
from retbench.errors import ConfigError, DivergedError
from retbench.models.decoder import Decoder
from retbench.ops.precision import wide_dtype
from retbench.training.sharding import full_tensor

RECENT_STEPS = 64
"""Number of steps whose median loss a new loss is compared with."""
MIN_STEPS = 16
"""Least number of steps with a meaningful median."""


def summed_loss(model: Callable[..., Tensor], examples: Examples) -> Tensor:
    """Return the summed cross-entropy of the targets in nats, (); logits are computed only where there is one."""
    targets = examples.targets
    if examples.answers_only:
        asked = targets != IGNORED
        logits, targets = model(examples.inputs, at=asked), targets[asked]  # (M, N), (M,)
    else:
        logits = model(examples.inputs).flatten(0, 1)  # (B * T, N)
    wide = logits.to(wide_dtype(logits.dtype))
    del logits  # in a 16-bit dtype the loss needs only their wide copy
    return F.cross_entropy(wide, targets.flatten(), reduction="sum")


@torch.no_grad()
def mean_loss(model: Decoder, examples: Examples, micro_batch_size: int) -> float:
    """Return the nats per target."""
    total = sum(float(summed_loss(model, part)) for part in examples.parts(micro_batch_size))
    return total / int((examples.targets != IGNORED).sum())


def validation_rows(tokens: PackedTokens, num_tokens: int, seq_len: int) -> Tensor:
    """Return the first tokens of a split as consecutive rows (B, T + 1) that score at most `num_tokens` tokens.

    If the split is shorter than one row, the result is one shorter row.

    Raises:
        ConfigError: there is no token to score, because the first one has none before it.
    """
    scored = min(num_tokens, len(tokens) - 1)
    if scored < 1:
        raise ConfigError(
            f"the split '{tokens.split}' of '{tokens.header.corpus}' has {len(tokens)} token, and the first has none "
            "before it to predict it from. Use a larger corpus."
        )
    length = min(seq_len, scored)
    count = scored // length
    flat = torch.from_numpy(tokens.tokens[: count * length + 1].astype("int64"))
    return flat.unfold(0, length + 1, length).contiguous()


def make_optimizer(model: nn.Module, recipe: Recipe) -> AdamW:
    """Return torch's fused AdamW, whose decoupled weight decay leaves norms alone.

    The learning rate is set before every step.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        fused=True,
    )


def set_rate(optimizer: AdamW, learning_rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit`; return the norm before, ().

    The norm of a sharded model is that of all shards.
    """
    return full_tensor(nn.utils.clip_grad_norm_(model.parameters(), limit))


def make_contiguous(model: nn.Module) -> None:
    """Make every weight contiguous, which torch's products and optimisers expect, and FSDP demands.

    Some are stored transposed to decode a single row, which training never does.
    """
    for weight in model.parameters():
        weight.data = weight.data.contiguous()


class LossMonitor:
    """Detects divergence from every step's loss and gradients, before the optimiser changes the weights.

    Args:
        vocab_size: A uniform guess costs log(vocab_size) nats; a loss below that is never a spike.
        spike_ratio: A loss above this multiple of the recent median, and above guessing, ends the run.
        recent: Losses of the steps before, if the run continues.
    """

    def __init__(self, vocab_size: int, spike_ratio: float, recent: Iterable[float] = ()) -> None:
        self._guess = math.log(vocab_size)
        self._ratio = spike_ratio
        self._recent: deque[float] = deque(recent, maxlen=RECENT_STEPS)

    @property
    def recent(self) -> list[float]:
        """Losses that the next one is compared with."""
        return list(self._recent)

    def check(self, step: int, loss: float, grad_norm: float) -> None:
        """Check a step, counted from 1, and remember its loss.

        Raises:
            DivergedError: the loss or the gradients are not finite, or the loss is a spike.
        """
        remedy = "Use a lower learning rate, a longer warm-up or a tighter grad_clip."
        if not math.isfinite(loss):
            raise DivergedError(f"step {step}: the training loss is {loss}. {remedy}")
        if not math.isfinite(grad_norm):
            raise DivergedError(
                f"step {step}: the norm of the gradients is {grad_norm} at a loss of {loss:.4g}. {remedy}"
            )
        if len(self._recent) >= MIN_STEPS:
            usual = median(self._recent)
            if loss > self._guess and loss > self._ratio * usual:
                raise DivergedError(
                    f"step {step}: the training loss is {loss:.4g} nats, more than {self._ratio:g} times the median "
                    f"of the last {len(self._recent)} steps ({usual:.4g}) and above guessing ({self._guess:.4g}). "
                    f"{remedy} spike_ratio sets the limit."
                )
        self._recent.append(loss)
