"""Training: recipes of papers, and the table `[profiles.NAME.training]` of an experiment.

Models are compared fairly when all get the same tokens in the same order, the same optimiser and schedule, and the same
tuning: `TrainingSpec` has one grid of learning rates, and each model takes the rate at which it trained best.
"""

from math import cos, pi, pow
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from retbench.architectures.configs import Initialisation
from retbench.architectures.sizes import SIZES, SizeId, size_id
from retbench.config.evaluation import Count, Length, without_repeats
from retbench.config.synthetic import TaskSpec
from retbench.errors import unknown_name
from retbench.strict import Name, Strict

Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1), AfterValidator(without_repeats)
]


class Recipe(Strict):
    """Hyper-parameters of AdamW and of the learning-rate schedule; the learning rate is tuned for each model."""

    source: str
    """Source of the numbers."""
    beta1: Fraction = 0.9
    beta2: Fraction = 0.98
    eps: Positive = 1e-8
    weight_decay: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    """Decoupled weight decay of matrices; norms have none."""
    grad_clip: Positive = 2.0
    """Largest global norm of the gradients."""
    schedule: Literal["polynomial", "cosine", "constant"] = "polynomial"
    """Decay of the learning rate after the warm-up. polynomial: to `final_ratio` with the power `decay_power`."""
    decay_power: Positive = 1.0
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at which the decay ends, one step after the last, over the highest."""
    warmup_steps: int = Field(default=375, ge=0)
    """Steps of a linear rise from 0; never more than `warmup_share` of a run."""
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    """Largest share of a run that the warm-up takes, for runs shorter than the paper's."""

    def warmup_of(self, num_steps: int) -> int:
        """Return the steps of the warm-up in a run of `num_steps`."""
        return min(self.warmup_steps, int(num_steps * self.warmup_share))

    def rate(self, step: int, num_steps: int, learning_rate: float) -> float:
        """Return the learning rate of step `step` (from 0) of `num_steps`, where the highest is `learning_rate`."""
        warmup = self.warmup_of(num_steps)
        if step < warmup:
            return learning_rate * (step + 1) / warmup
        left = (num_steps - step) / (num_steps - warmup)  # from 1 after the warm-up to 1 / steps
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
        "gradients clipped to 1.0; beta2 of 0.95 and 1,000 steps of warm-up have no known source",
        beta2=0.95,
        weight_decay=0.01,
        grad_clip=1.0,
        schedule="cosine",
        final_ratio=0.1,
        warmup_steps=1000,
    ),
    "recall": Recipe(
        source="For synthetic tasks: AdamW with the weight decay of 0.1 of Zoology (arXiv:2312.04927), linear decay as "
        "in Mamba-2 (arXiv:2405.21060, Figure 8); warm-up over a twentieth of the run and gradients clipped to 1.0, "
        "which neither has",
        weight_decay=0.1,
        grad_clip=1.0,
        warmup_share=0.05,
    ),
}


class TrainingSpec(Strict):
    """A `[profiles.NAME.training]` table: corpus or task, length and tuning of the training of each model."""

    corpus: str = "python"
    """A name that `load_corpus` takes; its split `train` is trained on, its split `validation` is for tuning."""
    tokenizer: str = "bytes"
    task: Annotated[TaskSpec, Field(discriminator="name")] | None = None
    """Generated examples to train on, in place of a corpus with a tokenizer."""
    sizes: tuple[Annotated[Name, AfterValidator(size_id)], ...] = Field(min_length=1)
    """Every model of the experiment is trained at each of them."""
    seq_len: Annotated[Length, Field(ge=2)]
    batch_size: Length
    """Sequences of a step, over all processes."""
    micro_batch_size: Length | None = None
    """Sequences that a process handles at a time, with accumulated gradients. All of its sequences when absent."""
    num_tokens: int = Field(ge=1, le=2**50)
    """Tokens that a model is trained on; the number of steps is that of whole batches."""
    num_tokens_by_size: dict[SizeId, Annotated[int, Field(ge=1, le=2**50)]] = Field(default_factory=dict)
    """Tokens of the final runs at single sizes, in place of `num_tokens`; other sizes have no effect."""
    recipe: str = "paper"
    learning_rates: tuple[Positive, ...] = Field(min_length=1)
    """Grid of each model at each tuning size; each model takes its own best by validation loss."""
    tuning_sizes: tuple[SizeId, ...] = ()
    """Sizes at which the grid is run; another size takes the rate of the nearest tuning size below it. The first size
    when empty."""
    tuning_tokens: int | None = Field(default=None, ge=1, le=2**50)
    """Tokens of a run of the grid; `num_tokens` when absent."""
    seeds: Seeds = (0,)
    """Seeds of the final runs at every size without an entry in `seeds_by_size`; they draw weights and text order."""
    seeds_by_size: dict[SizeId, Seeds] = Field(default_factory=dict)
    initialisation: Initialisation = "plain"
    """plain: every projection from one normal distribution, in all models alike. published: as the published code of a
    mixer starts its own, where that differs (retention, Mamba-2, RWKV)."""
    autocast: Literal["none", "bfloat16"] = "none"
    """bfloat16: products of forward and backward in bfloat16, weights and optimiser in float32."""
    compile: bool = False
    """Compile forward and backward of every model with torch.compile. Other orders of summation change the last digits
    of a loss, so compiled and eager runs are different runs."""
    validation_tokens: Count = 65536
    """Largest number of tokens of the validation split that are scored, in whole examples of a task."""
    validate_every: Count = 100
    """Steps between two points of the learning curve."""
    checkpoint_every: Count = 100
    """Steps between two checkpoints from which a killed run continues."""
    keep_last: Count = 2
    """Checkpoints that are kept during a run."""
    spike_ratio: float = Field(default=3.0, gt=1, le=1e6)
    """A training loss of more than this many times the recent median, and above that of guessing, ends the run."""

    _distinct = field_validator("sizes", "learning_rates", "tuning_sizes")(without_repeats)

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        if name not in RECIPES:
            raise ValueError(str(unknown_name("recipe", name, RECIPES)))
        return name

    @model_validator(mode="after")
    def _sizes_agree(self) -> "TrainingSpec":
        strange = [size for size in self.tuning_sizes if size not in self.sizes]
        if strange:
            raise ValueError(
                f"tuning_sizes has '{strange[0]}', which is not among the sizes {list(self.sizes)}"
            )
        for field in ("seeds_by_size", "num_tokens_by_size"):
            # They may have sizes that are not trained: --set training.sizes chooses some of a profile's.
            unknown = [size for size in getattr(self, field) if size not in (*self.sizes, *SIZES)]
            if unknown:
                raise ValueError(f"{field} has '{unknown[0]}', which is no size (retbench list --sizes)")
        runs = [("num_tokens", count) for count in (self.num_tokens, *self.num_tokens_by_size.values())]
        if self.has_grid and self.tuning_tokens is not None:
            runs.append(("tuning_tokens", self.tuning_tokens))
        for field, count in runs:
            if count < self.tokens_per_step:
                raise ValueError(
                    f"{field} is {count:,} and a step takes {self.tokens_per_step:,} "
                    "(batch_size * seq_len); there must be one step"
                )
        return self

    @model_validator(mode="after")
    def _fits_task(self) -> "TrainingSpec":
        if self.task is None:
            return self
        both = sorted({"corpus", "tokenizer"} & self.model_fields_set)
        if both:
            raise ValueError(f"it has both a table 'task' and the field '{both[0]}'; remove one of them")
        if self.compile:
            raise ValueError(
                "compile is for a corpus: a task takes the logits of its answers only, and their number changes at "
                "every step"
            )
        self.task.check_length(self.seq_len)
        if self.validation_tokens < len(self.task.kinds) * self.seq_len:
            raise ValueError(
                f"validation_tokens is {self.validation_tokens:,}, and an example of each kind takes "
                f"{len(self.task.kinds) * self.seq_len:,}; there must be one of each"
            )
        return self

    @property
    def has_grid(self) -> bool:
        """True if each model takes the best of several learning rates."""
        return len(self.learning_rates) > 1

    @property
    def unused_fields(self) -> list[str]:
        """Names of the fields of the grid that the table has, although there is a single learning rate."""
        grid = {"tuning_sizes": self.tuning_sizes, "tuning_tokens": self.tuning_tokens}
        return [] if self.has_grid else [name for name, value in grid.items() if value]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step."""
        return self.batch_size * self.seq_len

    def steps_of(self, size: str) -> int:
        """Return the steps of a final run at a size."""
        return self.num_tokens_by_size.get(size, self.num_tokens) // self.tokens_per_step

    @property
    def tuning_steps(self) -> int:
        """Steps of a run of the grid."""
        return (self.tuning_tokens or self.num_tokens) // self.tokens_per_step

    @property
    def tuned_at(self) -> tuple[str, ...]:
        """Sizes at which the grid is run."""
        return self.tuning_sizes or self.sizes[:1]

    def seeds_of(self, size: str) -> tuple[int, ...]:
        """Return the seeds of the final runs at a size."""
        return self.seeds_by_size.get(size, self.seeds)
