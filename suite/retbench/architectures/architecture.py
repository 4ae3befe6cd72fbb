"""Architectures: recipes that turn an entry of an experiment and a size into a model of mixers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from retbench.architectures.sizes import Size, SizeId
from retbench.mixers.mixer import Mixer
from retbench.strict import Strict

if TYPE_CHECKING:
    from retbench.architectures.configs import ModelConfig

FfnWidth = Literal["matched", "published"] | Annotated[int, Field(ge=8)]


class ModelSpec(Strict):
    """Fields of every `[models.NAME]` table; the class of an architecture adds its fields."""

    architecture: str
    size: SizeId | None = None
    """A name in `retbench list --sizes`; the profile's size when absent."""
    checkpoint: str | None = None
    """A folder or a hub name of weights that are measured as they are; their configuration replaces the size's."""
    revision: str | None = None
    """Revision of a hub name. When absent: the revision that retbench pins, or else the newest."""
    backend: str
    """The form to run with; of a hybrid one for each of its mixers, joined by '+'."""
    chunk_size: int | None = Field(default=None, ge=1)
    """Tokens of a chunk of the chunkwise form."""
    workloads: tuple[str, ...] | None = None
    """Workloads that measure the model; every workload of the profile when absent."""
    convolution_first: bool = False
    """Put a short gated convolution (arXiv:2402.18668) with as many parameters in place of the first layer's mixer."""

    @model_validator(mode="after")
    def _has_a_checkpoint(self) -> Self:
        if self.revision is not None and self.checkpoint is None:
            raise ValueError(f"revision is '{self.revision}', and there is no checkpoint. Remove it")
        return self

    @property
    def concatenates(self) -> bool:
        """True if the entry asks for a cache that is copied at every token."""
        return False

    @property
    def checkpoint_format(self) -> str:
        """Format in which the checkpoint is read; auto: the one that its configuration shows."""
        return "auto"

    @property
    def runs_checkpoint_code(self) -> bool:
        """True if code that comes with the checkpoint may run."""
        return False


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: As experiment files and records call it.
        title: As people call it.
        reference: Where it is described.
        spec: What a `[models.NAME]` table with this architecture may say.
        resolve: Turns such a table and a size into a model; ConfigError where they do not fit.
        presets: Variants that `retbench list --models` shows and `retbench verify` takes, with what they set.
        mixers: Mixers of a user's package that this architecture brings along.
        is_baseline: Other models are compared with it.
        order: Place in lists, the lowest first; equal ones by name.
        upgrade: Makes a model of the fields of a configuration in the first format, one flat table, as records and
            checkpoints had it before mixers.
        formats: Modules of the checkpoint formats that hold its weights.
        reads_any_model: It takes any checkpoint of another library, which runs the model. Such a model is not matched.
        is_standard: True for a model that has every part that its paper describes; ablations lack some.
        unusual: In words what differs from the model that the paper describes.
        features: What makes a baseline strong, as it was run: 'fused', 'grouped', 'graphs'; 'products' where these were
            faster than fused attention; and 'concatenated' for a cache that makes it weak.
    """

    name: str
    title: str
    reference: str
    spec: type[ModelSpec]
    resolve: "Callable[[Any, Size], ModelConfig]"
    presets: Mapping[str, Mapping[str, Any]]
    mixers: tuple[type[Mixer], ...] = ()
    is_baseline: bool = False
    order: int = 1
    upgrade: "Callable[..., ModelConfig] | None" = None
    formats: tuple[str, ...] = ()
    reads_any_model: bool = False
    is_standard: "Callable[[ModelConfig], bool]" = lambda config: True
    unusual: "Callable[[ModelConfig], list[str]]" = lambda config: []
    features: "Callable[[ModelConfig, Mapping[str, Any]], frozenset[str]]" = lambda config, backend: (
        frozenset()
    )
