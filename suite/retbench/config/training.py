"""How models are trained: the recipe of a paper or one's own, and what a pair of models is given of it.

A pair is trained fairly when both sides get the same tokens in the same order, the same optimiser and schedule, and
the same tuning: `TrainingSpec` has one grid of learning rates, and each side takes the best of its own runs over it.
"""

from math import cos, pi, pow
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from retbench.config.evaluation import without_repeats
from retbench.errors import unknown_name
from retbench.strict import Strict

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Recipe(Strict):
    """Optimiser and schedule; AdamW in all of them, with the learning rate of the model it is given to."""

    source: str
    """Where the numbers are from."""
    beta1: Fraction = 0.9
    beta2: Fraction = 0.98
    eps: Positive = 1e-8
    weight_decay: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    """Decoupled; of matrices only, not of norms."""
    grad_clip: Positive = 2.0
    """Largest norm of all gradients together."""
    schedule: Literal["polynomial", "cosine", "constant"] = "polynomial"
    """After the warm-up. polynomial: to `final_ratio` with the power `decay_power`, 1 being a line."""
    decay_power: Positive = 1.0
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """The last step's learning rate over the highest."""
    warmup_steps: int = Field(default=375, ge=0)
    """Steps of a linear rise from 0; never more than `warmup_share` of a run."""
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    """Of a run shorter than the paper's, the warm-up is at most this share."""

    def warmup_of(self, num_steps: int) -> int:
        """Steps of the warm-up in a run of `num_steps`."""
        return min(self.warmup_steps, int(num_steps * self.warmup_share))

    def rate(self, step: int, num_steps: int, learning_rate: float) -> float:
        """Learning rate of step `step` (from 0) of `num_steps`, where the highest is `learning_rate`."""
        warmup = self.warmup_of(num_steps)
        if step < warmup:
            return learning_rate * (step + 1) / warmup
        left = (num_steps - step) / (
            num_steps - warmup
        )  # 1 at the end of the warm-up, 1 / steps at the last step
        match self.schedule:
            case "polynomial":
                shape = pow(left, self.decay_power)
            case "cosine":
                shape = (1 - cos(pi * left)) / 2
            case "constant":
                shape = 1.0
        return learning_rate * (self.final_ratio + (1 - self.final_ratio) * shape)


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        source="RetNet (arXiv:2307.08621) Table 7 and Sec. 3.1: Adam (0.9, 0.98), polynomial decay, 375 steps of "
        "warm-up, gradients clipped to 2.0; weight decay 0.05 as in Sec. 3.1 (Table 7 has 0.01); without its dropout "
        "of 0.1"
    ),
    "gla": Recipe(
        source="Gated Linear Attention (arXiv:2312.06635): AdamW, cosine decay to a tenth, weight decay 0.01, "
        "gradients clipped to 1.0",
        beta2=0.95,
        weight_decay=0.01,
        grad_clip=1.0,
        schedule="cosine",
        final_ratio=0.1,
        warmup_steps=1000,
    ),
}


class TrainingSpec(Strict):
    """A `[profiles.NAME.training]` table: what each model of the experiment is trained on, how long, and how tuned."""

    corpus: str = "python"
    """A name that `load_corpus` takes; its split `train` is learned from, its split `validation` tunes."""
    tokenizer: str = "bytes"
    sizes: tuple[str, ...] = Field(min_length=1)
    """Every model of the experiment is trained at each of them."""
    seq_len: int = Field(ge=2)
    batch_size: int = Field(ge=1)
    """Sequences of a step, over all processes."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences that a process has in flight at a time; gradients add up. All of its own when absent."""
    num_tokens: int = Field(ge=1)
    """Tokens that a model learns from; the steps are as many as whole batches of it."""
    recipe: str = "paper"
    learning_rates: tuple[Positive, ...] = Field(min_length=1)
    """The grid: each side runs all of it at each tuning size and takes its own best by validation loss."""
    tuning_sizes: tuple[str, ...] = ()
    """Sizes at which the grid is run; another size takes the rate of the nearest tuning size below it. The smallest
    size when empty."""
    tuning_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a run of the grid; `num_tokens` when absent."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(default=(0,), min_length=1)
    """Of the final runs, at every size without an entry in `seeds_by_size`; a seed draws weights and order of text."""
    seeds_by_size: dict[str, tuple[Annotated[int, Field(ge=0, lt=2**31)], ...]] = Field(default_factory=dict)
    autocast: Literal["none", "bfloat16"] = "none"
    """bfloat16: products of forward and backward in it, weights and optimiser in float32."""
    validation_tokens: int = Field(default=65536, ge=1)
    """At most so many tokens of the validation split are scored."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between two points of the learning curve."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints from which a killed run goes on."""
    keep_last: int = Field(default=2, ge=1)
    """Checkpoints of a run that are kept while it goes on."""
    spike_ratio: float = Field(default=3.0, gt=1, allow_inf_nan=False)
    """A training loss of more than so many times the recent median, and above what guessing costs, ends the run."""

    _distinct = field_validator("sizes", "learning_rates", "seeds", "tuning_sizes")(without_repeats)

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        if name not in RECIPES:
            raise ValueError(str(unknown_name("recipe", name, RECIPES)))
        return name

    @model_validator(mode="after")
    def _sizes_agree(self) -> "TrainingSpec":
        for field in ("tuning_sizes", "seeds_by_size"):
            strange = [size for size in getattr(self, field) if size not in self.sizes]
            if strange:
                raise ValueError(
                    f"{field} has '{strange[0]}', which is not among the sizes {list(self.sizes)}"
                )
        if self.num_tokens < self.tokens_per_step:
            raise ValueError(
                f"num_tokens is {self.num_tokens:,} and a step takes {self.tokens_per_step:,} "
                "(batch_size * seq_len); there must be one step"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step learns from."""
        return self.batch_size * self.seq_len

    @property
    def num_steps(self) -> int:
        """Steps of a final run."""
        return self.num_tokens // self.tokens_per_step

    @property
    def tuning_steps(self) -> int:
        """Steps of a run of the grid."""
        return max(1, (self.tuning_tokens or self.num_tokens) // self.tokens_per_step)

    @property
    def tuned_at(self) -> tuple[str, ...]:
        """Sizes at which the grid is run."""
        return self.tuning_sizes or self.sizes[:1]

    def seeds_of(self, size: str) -> tuple[int, ...]:
        """Seeds of the final runs at a size."""
        return self.seeds_by_size.get(size, self.seeds)
