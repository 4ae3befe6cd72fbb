"""Full configurations of models: all that fixes shapes and arithmetic, nothing about how they are run."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from retbench.architectures.registry import (
    find_architecture,
    find_channel_mixer,
    find_mixer,
    upgrade_config,
)
from retbench.architectures.sizes import Size
from retbench.errors import ConfigError, unknown_name
from retbench.mixers.feed_forward import ChannelMixer, FeedForward
from retbench.mixers.mixer import Mixer, StateTensor, WholeModel
from retbench.strict import Strict

Initialisation = Literal["plain", "published"]
"""plain: projections are drawn alike in every model. published: as each mixer's published code draws its own."""


def _parse_mixer(raw: object) -> object:
    """Return the mixer that a dumped configuration names; anything else as it is."""
    if isinstance(raw, dict) and isinstance(raw.get("mixer"), str):
        return find_mixer(raw["mixer"]).model_validate(raw)
    return raw


def _parse_channel_mixer(raw: object) -> object:
    """Return the channel mixer that a dumped configuration names, a feed-forward if it names none."""
    if isinstance(raw, dict):
        kind = raw.get("kind")
        return (find_channel_mixer(kind) if isinstance(kind, str) else FeedForward).model_validate(raw)
    return raw


class BlockConfig(Strict):
    """Equal blocks in a row: a mixer, then a channel mixer such as a feed-forward where there is one."""

    count: int = Field(default=1, ge=1)
    """Number of blocks of this kind that follow each other."""
    mixer: Annotated[SerializeAsAny[Mixer], BeforeValidator(_parse_mixer)]
    ffn: Annotated[SerializeAsAny[ChannelMixer] | None, BeforeValidator(_parse_channel_mixer)] = None

    @model_validator(mode="after")
    def _states_have_own_names(self) -> "BlockConfig":
        names = [one.name for one in self.state]
        if len(names) > len(set(names)):
            raise ValueError(f"tensors of the mixer's and the channel mixer's state share a name: {names}")
        return self

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """The tensors that one block carries from token to token: those of its mixer, then of its channel mixer."""
        return (*self.mixer.state, *(self.ffn.state if self.ffn else ()))


class ModelConfig(Strict):
    """A decoder-only language model: an embedding, blocks in order, a norm and an untied head."""

    architecture: str
    variant: str
    d_model: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    norm: Literal["rms", "layer"] = "rms"
    """Norm before each mixer and feed-forward and before the head. rms: RMSNorm. layer: LayerNorm with bias."""
    norm_eps: float = 1e-6
    embedding_norm: bool = False
    """True if the embedded tokens are normed before the first block."""
    convolution_first: bool = False
    """True if a short convolution stands in place of the first layer's mixer, which its architecture does not have."""
    blocks: tuple[BlockConfig, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, raw: object) -> object:
        return upgrade_config(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _widths_agree(self) -> "ModelConfig":
        for block in self.blocks:
            for part in (block.mixer, block.ffn):
                if part is not None and part.d_model != self.d_model:
                    raise ValueError(f"a block is {part.d_model} wide in a model of d_model {self.d_model}")
        return self

    @model_validator(mode="after")
    def _sources_exist(self) -> "ModelConfig":
        earlier: set[Mixer] = set()
        for layers, block in self._numbered_blocks():
            mixer = block.mixer
            if mixer.source is not None and block.ffn is not None and block.ffn.state:
                raise ValueError(
                    f"layer {layers[0]}, {mixer.title}, reads the state of another layer, and its channel mixer has "
                    "one too; give it a feed-forward"
                )
            if mixer.source is not None and mixer.source not in earlier:
                raise ValueError(
                    f"layer {layers[0]}, {mixer.title}, reads the state of an earlier layer with {mixer.source!r}, "
                    "and there is none; put that layer before it"
                )
            earlier.add(mixer)
        return self

    def _numbered_blocks(self) -> Iterator[tuple[range, BlockConfig]]:
        """Yield equal blocks in a row with the indices of their layers."""
        start = 0
        for block in self.blocks:
            yield range(start, start + block.count), block
            start += block.count

    @property
    def state_layers(self) -> tuple[int, ...]:
        """For each block the index of the block whose state it uses: its own, or that of its mixer's source."""
        found: list[int] = []
        latest: dict[Mixer, int] = {}
        for layers, block in self._numbered_blocks():
            source = block.mixer.source
            found.extend(layers if source is None else [latest[source]] * len(layers))
            latest[block.mixer] = layers[-1]
        return tuple(found)

    @property
    def last_stateful(self) -> int:
        """Index of the last block with a state. Of a prompt the blocks after it need the last token only."""
        return max((layers[-1] for layers, block in self._numbered_blocks() if block.state), default=0)

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields without those at their defaults that earlier configurations did not have."""
        fields: dict[str, Any] = dump(self)
        for name in ("embedding_norm", "convolution_first"):
            if not getattr(self, name):
                fields.pop(name, None)
        return fields

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return sum(block.count for block in self.blocks)

    @property
    def layers(self) -> Iterator[BlockConfig]:
        """Every block in order."""
        for block in self.blocks:
            for _ in range(block.count):
                yield block

    @property
    def mixer(self) -> Mixer:
        """The mixer of the first block."""
        return self.blocks[0].mixer

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """Each different mixer once, in the order of the blocks."""
        return tuple(dict.fromkeys(block.mixer for block in self.blocks))

    @property
    def ffn(self) -> ChannelMixer | None:
        """The channel mixer of the first block."""
        return self.blocks[0].ffn

    @property
    def forms(self) -> list[str]:
        """Forms that the model can be asked to run with; of several kinds of mixers as MIXER=FORM."""
        kinds = {mixer.mixer: mixer for mixer in self.mixers}
        if len(kinds) == 1:
            return list(self.mixer.forms)
        return [f"{name}={form}" for name, mixer in kinds.items() for form in mixer.forms]

    @property
    def grows(self) -> bool:
        """True if the state grows with the context, as a key-value cache does."""
        return any(mixer.grows for mixer in self.mixers)

    @property
    def concatenates(self) -> bool:
        """True if a cache is copied at every token instead of being allocated to a capacity."""
        return any(mixer.concatenates for mixer in self.mixers)

    @property
    def has_published_init(self) -> bool:
        """True if training can start some of its weights as published, unlike those of every other model."""
        parts = (part for block in self.blocks for part in (block.mixer, block.ffn))
        return any(part.published_init for part in parts if part is not None)

    @property
    def whole_model(self) -> WholeModel | None:
        """Counts of a model that is not taken apart here and has no analytical costs; None for a matched one."""
        return self.mixer.whole_model

    @property
    def fingerprint(self) -> str:
        """Short hash of every field: two models with one fingerprint have the same shapes and arithmetic."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def modules(self) -> tuple[str, ...]:
        """Full names of the modules that hold its architecture, its mixers and its channel mixers."""
        recipe = find_architecture(self.architecture).spec.__module__
        parts = ((type(mixer).__module__, mixer.implementation.partition(":")[0]) for mixer in self.mixers)
        channel_mixers = (name for block in self.blocks if block.ffn for name in block.ffn.modules)
        return (recipe, *dict.fromkeys([*(name for pair in parts for name in pair), *channel_mixers]))

    def chunk_size(self, form: str, asked: int | None) -> int | None:
        """Return the chunk that the model runs a form with; None where no mixer has chunks."""
        chunks = [mixer.chunk_size(form_of(mixer, form), asked) for mixer in self.mixers]
        return next((chunk for chunk in chunks if chunk is not None), None)


def form_of(mixer: Mixer, backend: str) -> str:
    """Return the form of one mixer in what a model is asked to run with.

    'chunkwise+sdpa' and 'retention=chunkwise+attention=sdpa' both give a retention 'chunkwise'; a mixer that is not
    mentioned takes its default.
    """
    parts = backend.split("+")
    named = [part.removeprefix(f"{mixer.mixer}=") for part in parts if part.startswith(f"{mixer.mixer}=")]
    return next((form for form in [*named, *parts] if form in mixer.forms), mixer.default_form)


def reading_backend(config: ModelConfig, backend: str) -> str:
    """Return the backend that reads prompts, and trains, as this one does: without what decode steps alone are run by.

    'auto' of a Transformer is 'sdpa'; of YOCO, whose lower half has windows, it is 'blocks+sdpa'.
    """
    found: dict[str, None] = {}
    for part in backend.split("+"):
        name, sign, form = part.rpartition("=")
        forms = [
            mixer.forms[form] for mixer in config.mixers if form in mixer.forms and name in ("", mixer.mixer)
        ]
        found |= dict.fromkeys(f"{name}{sign}{one.reads_as or form}" for one in forms)
    return "+".join(found)


def default_backend(config: ModelConfig) -> str:
    """Return the default form of each kind of mixer in a model; see `join_default_forms`."""
    return join_default_forms(type(mixer) for mixer in config.mixers)


def join_default_forms(kinds: Iterable[type[Mixer]]) -> str:
    """Return the default form of one kind of mixer; of several kinds MIXER=FORM, joined by '+'."""
    forms = {kind.model_fields["mixer"].default: kind.default_form for kind in kinds}
    return "+".join(form if len(forms) == 1 else f"{name}={form}" for name, form in forms.items())


def check_backend(config: ModelConfig, backend: str) -> None:
    """ConfigError where a part of `backend` is no form of any mixer of the model, or one that no mixer takes."""
    kinds = {mixer.mixer: mixer for mixer in config.mixers}
    for part in backend.split("+"):
        name, sign, form = part.rpartition("=")
        able = [kind for kind, mixer in kinds.items() if name in ("", kind) and form in mixer.forms]
        if not able or (sign and not name):
            title = "+".join(mixer.title for mixer in kinds.values())
            raise unknown_name(f"{title} backend", part, config.forms)
        taken = {kind: form_of(kinds[kind], backend) for kind in able}
        if form not in taken.values():
            others = " and ".join(f"{kind} takes '{one}'" for kind, one in taken.items())
            raise ConfigError(
                f"backend '{backend}': no mixer takes '{part}', as {others}. Name the mixer of each form, such as "
                f"{able[-1]}={form}, or remove '{part}'."
            )


def llama_config(
    architecture: str, variant: str, size: Size, mixers: Iterable[Mixer], ffn_dim: int
) -> ModelConfig:
    """Return a model of Llama's blocks: RMSNorm and the mixer of each layer, then RMSNorm and a SwiGLU feed-forward."""
    ffn = FeedForward(d_model=size.d_model, ffn_dim=ffn_dim)
    runs = [(mixer, len(list(layers))) for mixer, layers in groupby(mixers)]
    return ModelConfig(
        architecture=architecture,
        variant=variant,
        d_model=size.d_model,
        vocab_size=size.vocab_size,
        blocks=tuple(BlockConfig(count=count, mixer=mixer, ffn=ffn) for mixer, count in runs),
    )


def parse_model_config(raw: dict[str, Any]) -> ModelConfig:
    """Return the configuration that `model_dump()` wrote; pydantic's ValidationError where it is none."""
    return ModelConfig.model_validate(raw)
