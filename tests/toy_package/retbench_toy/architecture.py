"""Linear attention without a normaliser or a norm, in one file: mixer, torch module and recipe."""

from typing import Any, ClassVar, Literal

from retbench.architectures.architecture import Architecture, ModelSpec
from retbench.architectures.configs import BlockConfig, ModelConfig
from retbench.architectures.matching import solve_width
from retbench.architectures.sizes import Size
from retbench.mixers.feed_forward import FeedForward
from retbench.mixers.linear_operator import LinearOperator
from retbench.mixers.mixer import KeptValues, SizeFields


class ToyMixer(LinearOperator):
    """o_t = q_t S_t with S_t = S_{t-1} + k_t^T v_t."""

    mixer: Literal["toy_mixer"] = "toy_mixer"

    title: ClassVar[str] = "toy"
    implementation: ClassVar[str] = "retbench_toy.architecture:make_module"

    @classmethod
    def at_size(cls, size: SizeFields, **fields: Any) -> "ToyMixer":
        return cls.model_validate({"d_model": size.d_model, "num_heads": size.attention_heads, **fields})

    @property
    def streamed_params(self) -> int:
        return 2 * self.d_model**2

    @property
    def local_params(self) -> int:
        return 2 * self.d_model**2

    def decode_workspace(self, dtype: str) -> int:
        return 8 * self.d_model

    def kept_for_gradients(self, form: str) -> KeptValues:
        return KeptValues(6 * self.d_model, scores=1 if self.forms[form].quadratic else 0)


def make_module(config: ToyMixer, form: str, chunk_size: int | None) -> Any:
    """Return the torch module; torch is imported when a model is built."""
    import torch

    from retbench.mixers.module import LinearOperatorModule
    from retbench.ops.linear import Linear

    class ToyModule(LinearOperatorModule):
        def __init__(self) -> None:
            super().__init__(config, form, chunk_size)
            self.qkv_proj = Linear(config.d_model, 3 * config.d_model)
            self.out_proj = Linear(config.d_model, config.d_model)

        @property
        def after_operator(self) -> torch.nn.Module:
            return self.out_proj

        def forward(self, x: Any, state: Any, positions: Any, *, last_only: bool = False) -> Any:
            q, k, v = (
                part.view(*part.shape[:-1], config.num_heads, -1)
                for part in self.qkv_proj(x).chunk(3, dim=-1)
            )
            no_decay = torch.zeros(config.num_heads, dtype=torch.float64, device=x.device)
            q = (q[:, -1:] if last_only else q) * config.head_dim**-0.5
            return self.out_proj(self.operate(q, k, v, no_decay, state).flatten(2))

    return ToyModule()


class ToySpec(ModelSpec):
    """A `[models.NAME]` table with architecture = "toy"."""

    architecture: Literal["toy"]
    backend: Literal["parallel", "chunkwise", "recurrent"] = "chunkwise"


def resolve(spec: ToySpec, size: Size) -> ModelConfig:
    """Return the model of an entry at a size."""
    mixer = ToyMixer.at_size(size)

    def make(ffn_dim: int) -> ModelConfig:
        block = BlockConfig(
            count=size.num_layers, mixer=mixer, ffn=FeedForward(d_model=size.d_model, ffn_dim=ffn_dim)
        )
        shape = {"d_model": size.d_model, "vocab_size": size.vocab_size}
        return ModelConfig(architecture="toy", variant="plain", blocks=(block,), **shape)

    return solve_width(make, size)


ARCHITECTURE = Architecture(
    name="toy",
    title="Toy attention",
    reference="none; made for tests",
    spec=ToySpec,
    resolve=resolve,
    presets={"plain": {}},
    mixers=(ToyMixer,),
)
