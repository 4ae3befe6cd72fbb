"""Matching to a budget: the one width that a recipe leaves open is solved for the size's number of parameters.

A size fixes the width, the number of layers and the budget of the paper, 12 d_model^2 parameters for each layer
(arXiv:2307.08621, Sec. 3.1). What is left as mismatch is reported, and more than 1 % is refused.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from pydantic import ValidationError

from retbench.architectures import costs
from retbench.architectures.architecture import FfnWidth, ModelSpec
from retbench.architectures.blame import blaming_package
from retbench.architectures.configs import ModelConfig, check_backend
from retbench.architectures.registry import find_architecture, mixers
from retbench.architectures.sizes import Size, find_size
from retbench.errors import ConfigError, shown
from retbench.mixers.gated_convolution.config import GatedConvolution
from retbench.mixers.mixer import check_costs
from retbench.strict import reason_of
from retbench.user_packages import OWN, package_of

MAX_MISMATCH = 0.01
"""Largest difference of the non-embedding parameters of two models, over the larger of the two."""

WIDTH_STEP = 8
"""A solved width is a multiple of it: kernels want that."""

NARROW = 96
"""Below this width of the model `WIDTH_STEP` is too coarse for a budget, and any width may be solved."""


def resolve_model(spec: ModelSpec, default_size: str, *, vocab_size: int | None = None) -> ModelConfig:
    """Return the configuration of one entry of `[models]`; with the size's vocabulary when `vocab_size` is None.

    Raises:
        ConfigError: unknown size, head counts or widths that do not fit it; a user's architecture gave no model of its
            own, or a mixer of it a cost that is no number from 0 on.
    """
    name = spec.size or default_size
    size = find_size(name)
    if vocab_size is not None:
        size = replace(size, vocab_size=vocab_size)
    try:
        config = find_architecture(spec.architecture).resolve(spec, size)
        _check_resolved(config, spec)
        if strange := {mixer.mixer for mixer in config.mixers} - mixers().keys():
            raise ConfigError(
                f"{spec.architecture}: its mixer '{min(strange)}' is not known here. List its class in the field "
                "'mixers' of the Architecture."
            )
        forms = [(mixer, form) for mixer in config.mixers for form in mixer.forms]
        if spec.chunk_size and not any(mixer.chunk_size(form, spec.chunk_size) for mixer, form in forms):
            raise ConfigError(
                f"{spec.architecture}: chunk_size is {spec.chunk_size}, and no form of its mixers has chunks. Leave it "
                "out."
            )
        check_backend(config, spec.backend)
        # The call of a method that takes other arguments fails outside of its package.
        with blaming_package(config):
            for mixer in config.mixers:
                if package_of(type(mixer)) != OWN and mixer.whole_model is None:
                    check_costs(mixer)
        return put_convolution_first(config) if spec.convolution_first else config
    except ValidationError as error:  # such as a feed-forward width that the value heads cannot share
        fault = error.errors()[0]
        place, reason = ".".join(map(str, fault["loc"])), reason_of(fault)
        if place:
            raise ConfigError(
                f"{spec.architecture}: '{place}' is {shown(fault['input'])}: {reason}. Correct or remove it."
            ) from error
        ffn_dim = getattr(spec, "ffn_dim", "matched")
        asked, advice = "", "Correct the model's table."
        if ffn_dim != "matched":
            asked, advice = f", ffn_dim {ffn_dim!r}", 'Use ffn_dim = "matched", or a width that fits.'
        raise ConfigError(f"{spec.architecture} of size '{name}'{asked}: {reason}. {advice}") from error
    except ConfigError as error:
        raise ConfigError(str(error).replace("{size}", f"size '{name}'")) from error


def _check_resolved(config: object, spec: ModelSpec) -> None:
    """Raise a ConfigError unless `resolve` of an architecture, which a user may have written, gave a model of it."""
    if not isinstance(config, ModelConfig):
        raise ConfigError(
            f"architecture '{spec.architecture}': its `resolve` returned {shown(config)}. Return a ModelConfig."
        )
    if config.architecture != spec.architecture:
        raise ConfigError(
            f"architecture '{spec.architecture}': its `resolve` returned a ModelConfig with architecture = "
            f"{shown(config.architecture)}, and records would call the model that. Give it its own name."
        )


def put_convolution_first(config: ModelConfig) -> ModelConfig:
    """Return a model whose first layer has a short gated convolution in place of its mixer, with as many parameters.

    The convolution is as wide as that takes; see `GatedConvolution`.

    Raises:
        ConfigError: the model has one layer only, which would be left without its mixer.
    """
    first, *rest = config.blocks
    if config.num_layers == 1:
        raise ConfigError(
            f"convolution_first is true, and {{size}} has one layer, {first.mixer.title}. Use a larger size."
        )
    one_channel = costs.mixer_params(GatedConvolution(d_model=config.d_model, inner_width=1))
    width = max(1, round(costs.mixer_params(first.mixer) / one_channel))
    convolution = GatedConvolution(d_model=config.d_model, inner_width=width)
    led = first.model_copy(update={"count": 1, "mixer": convolution})
    others = [first.model_copy(update={"count": first.count - 1})] if first.count > 1 else []
    fields = {**dict(config), "blocks": (led, *others, *rest), "convolution_first": True}
    return ModelConfig.model_validate(fields)


def width_step(size: Size) -> int:
    """Return the number that solved widths are multiples of at a size."""
    return WIDTH_STEP if size.d_model >= NARROW else 1


def solve_width(make: Callable[[int], ModelConfig], size: Size, *, step: int | None = None) -> ModelConfig:
    """Return the model whose blocks come closest to the size's budget.

    Args:
        make: Makes the model with a width; a wider one has at least as many parameters.
        size: The size, which says the budget.
        step: Widths are multiples of it; `width_step` when None.
    """
    step = step or width_step(size)
    budget = size.budget
    widths = range(step, 8 * size.d_model, step)

    def num_params(width: int) -> int:
        return costs.block_params(make(width))

    above = bisect_left(widths, budget, hi=len(widths) - 1, key=num_params)
    return make(min(widths[max(0, above - 1) : above + 1], key=lambda width: abs(num_params(width) - budget)))


def choose_width(
    make: Callable[[int], ModelConfig],
    width: FfnWidth,
    size: Size,
    published: int | str,
    *,
    step: int | None = None,
) -> ModelConfig:
    """Return the model of the feed-forward width asked for: a number, that of the variant's own code, or solved.

    Args:
        make: Makes the model with a width.
        width: As the experiment asks for it.
        size: The size.
        published: The width by the rule of the variant's own code, or in words why there is none.
        step: Solved widths are multiples of it; `width_step` when None.

    Raises:
        ConfigError: the published width is asked for, and there is none.
    """
    if width == "published":
        if isinstance(published, str):
            raise ConfigError(f"ffn_dim is 'published', and {published}. Use ffn_dim = \"matched\".")
        width = published
    return make(width) if isinstance(width, int) else solve_width(make, size, step=step)


def swiglu_width(d_model: int, ratio: float = 4) -> int:
    """Return the width of a SwiGLU feed-forward as in Llama and fla: 2/3 `ratio` d, up to a multiple of 256."""
    return 256 * -(-int(d_model * ratio * 2 / 3) // 256)


def check_divides(name: str, value: int, whole: str, total: int) -> None:
    """ConfigError where a field of an entry does not divide what it must; `{size}` stands for the size's name."""
    if total % value:
        raise ConfigError(f"{name} is {value}, which does not divide {whole} of {{size}}. Give a divisor.")


USE_MATCHED = 'Use ffn_dim = "matched"'
"""Remedy for models of which one has a width that was given."""


def mismatch_remedy(specs: Iterable[ModelSpec], default_size: str) -> str:
    """Return what to do about models that are not matched, given their entries and the size of those without one."""
    specs = tuple(specs)
    if any(spec.checkpoint or getattr(spec, "ffn_dim", "matched") != "matched" for spec in specs):
        return USE_MATCHED
    if len({spec.size or default_size for spec in specs}) > 1:
        return "Give all models one size"
    return "Their widths are matched already, in steps that are too coarse at this size. Use a larger size"


def match_models(
    models: Mapping[str, ModelConfig], *, allow_mismatch: bool, where: str, remedy: str = USE_MATCHED
) -> float:
    """Return the mismatch of an experiment's models: 1 - fewest / most non-embedding parameters.

    Args:
        models: The models by name.
        allow_mismatch: Whether any mismatch is accepted.
        where: Leads the message.
        remedy: What the message advises besides `allow_mismatch`; see `mismatch_remedy`.

    Raises:
        ConfigError: non-embedding parameters differ by more than 1 % and `allow_mismatch` is false.
    """
    sizes = tuple(costs.num_params_nonembedding(config) for config in models.values())
    mismatch = 1 - min(sizes) / max(sizes)
    if mismatch > MAX_MISMATCH and not allow_mismatch:
        listed = ", ".join(f"{name} {count:,}" for name, count in zip(models, sizes, strict=True))
        raise ConfigError(
            f"{where}: the models are not matched: non-embedding parameters are {listed}, "
            f"{100 * mismatch:.1f} % apart (at most 1 %). "
            f"{remedy}, or set allow_mismatch = true in the profile."
        )
    return mismatch
