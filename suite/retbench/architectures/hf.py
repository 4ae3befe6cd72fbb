"""Any causal language model of transformers, measured as it is: bring your own model.

Such a model is not matched to a size. It comes with its weights, and transformers computes it with its own cache, so
its costs are measured and none is analytical. Nothing here imports transformers, which is the extra `hf`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NoReturn

from pydantic import Field

from retbench.architectures.architecture import Architecture, ModelSpec
from retbench.architectures.sizes import Size
from retbench.errors import ConfigError
from retbench.mixers.mixer import Form, Mixer, SizeFields, StateTensor, WholeModel

DEFAULT_KERNEL = "default"
"""The attention kernel that transformers chooses by itself."""


class HfSpec(ModelSpec):
    """A `[models.NAME]` table with a causal language model of transformers."""

    architecture: Literal["hf"] = "hf"
    checkpoint: str
    """A folder as `save_pretrained` writes it, or a name on the hub such as Qwen/Qwen3-0.6B."""
    size: None = None
    """A model of transformers has the size of its checkpoint."""
    backend: Literal["default", "sdpa", "eager", "flash_attention_2"] = "default"
    """Attention kernel, by transformers' name; default: the one that transformers chooses for the model."""
    chunk_size: None = None
    """A model of transformers chooses its chunks itself."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint, which models need that are not part of transformers; see
    `config.own_models.check_trust`."""

    @property
    def checkpoint_format(self) -> str:
        """Format of the checkpoint: transformers reads it itself."""
        return "hf"

    @property
    def runs_checkpoint_code(self) -> bool:
        """True if the code of the checkpoint may run."""
        return self.trust_remote_code


class TransformersLayers(Mixer):
    """All layers of a model of transformers, which are not taken apart here."""

    mixer: Literal["transformers"] = "transformers"
    num_heads: int = Field(default=1, ge=1, exclude=True)
    """Not stated: layers may have none, or different numbers."""
    model_type: str
    """transformers' name of the architecture."""
    config_fingerprint: str
    """Hash of the checkpoint's configuration."""
    total_params: int = Field(ge=1)
    """Parameters, counted in the headers of the weights."""
    nonembedding_params: int = Field(ge=0)
    """Those outside of the tables with a row per token of the vocabulary."""
    has_cache: bool
    """False for a model whose state has a fixed size."""

    title: ClassVar[str] = "transformers model"
    forms: ClassVar[Mapping[str, Form]] = {
        DEFAULT_KERNEL: Form("parallel", quadratic=True),
        "sdpa": Form("kernel", quadratic=True),
        "eager": Form("parallel", quadratic=True),
        "flash_attention_2": Form("kernel"),
    }
    default_form: ClassVar[str] = DEFAULT_KERNEL
    implementation: ClassVar[str] = "retbench.models.hf:HfModel"
    library: ClassVar[str] = "transformers"

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """None that is known here: transformers allocates the state, and its bytes are measured."""
        return ()

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> NoReturn:
        """Raise ConfigError: the layers of a checkpoint have no other size."""
        raise ConfigError(
            "the mixer 'transformers' stands for a whole checkpoint and cannot be part of a pattern. Name the "
            'checkpoint in a table with architecture = "hf".'
        )

    @property
    def whole_model(self) -> WholeModel:
        """Counts of the model."""
        return WholeModel(self.total_params, self.nonembedding_params)

    @property
    def grows(self) -> bool:
        """True if the state grows with the context."""
        return self.has_cache


def _resolve(spec: HfSpec, size: Size) -> NoReturn:
    """Raise ConfigError: weights are never drawn for such a model."""
    raise ConfigError(
        f"'{spec.checkpoint}' is a model of transformers, which has no other size than its own."
    )


ARCHITECTURE = Architecture(
    name="hf",
    title="transformers model",
    reference="any causal language model of transformers",
    spec=HfSpec,
    resolve=_resolve,
    presets={},
    mixers=(TransformersLayers,),
    order=9,
    formats=("retbench.checkpoints.hf",),
    reads_any_model=True,
)
