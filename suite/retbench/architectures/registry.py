"""Finds architectures and mixers: those of this package, by looking into its folders, and those of users' packages.

A user's package names its `Architecture` objects in the entry point group `retbench.architectures`. A record may be of
an architecture that is not installed: it keeps its own name then.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, get_args

from pydantic import ValidationError

from retbench import mixers as own_mixers
from retbench.architectures.architecture import Architecture, ModelSpec
from retbench.errors import ConfigError, shown, unknown_name
from retbench.mixers.feed_forward import ChannelMixer, FeedForward
from retbench.mixers.mixer import Mixer, missing_parts
from retbench.strict import explain
from retbench.user_packages import ARCHITECTURES, installed


@cache
def architectures() -> Mapping[str, Architecture]:
    """Return every architecture by name, this package's first.

    Raises:
        ConfigError: a user's package cannot be imported, gives something else, or takes the name of another
            architecture or mixer.
    """
    package = import_module(ARCHITECTURES)
    modules = (import_module(f"{ARCHITECTURES}.{found.name}") for found in iter_modules(package.__path__))
    own = [module.ARCHITECTURE for module in modules if hasattr(module, "ARCHITECTURE")]
    found = {each.name: each for each in sorted(own, key=lambda each: (each.order, each.name))}
    known = dict(_own_mixers())
    for each in installed(ARCHITECTURES, Architecture, found):
        _check_complete(each)
        for kind in each.mixers:
            if known.setdefault(mixer_name(kind), kind) is not kind:
                raise _name_taken(kind, known[mixer_name(kind)])
        found[each.name] = each
    return found


def _name_taken(kind: type[Mixer], first: type[Mixer]) -> ConfigError:
    """Return the error of a user's mixer with the name of another one, which configurations would mean instead."""
    return ConfigError(
        f"{kind.__module__}.{kind.__name__}: its name, mixer = '{mixer_name(kind)}', is taken by "
        f"{first.__module__}.{first.__name__}. Choose another one."
    )


def _is_subclass(kind: object, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


_NEEDED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "mixers": (
        lambda given: (
            isinstance(given.mixers, tuple | list) and all(_is_subclass(kind, Mixer) for kind in given.mixers)
        ),
        "a tuple of subclasses of retbench.mixers.mixer.Mixer, with a comma after a single one: mixers = (MyMixer,)",
    ),
    "spec": (
        lambda given: _is_subclass(given.spec, ModelSpec),
        "a subclass of retbench.architectures.architecture.ModelSpec",
    ),
    "resolve": (lambda given: callable(given.resolve), "a function that takes a spec and a size"),
    # Commands find a model by its presets alone.
    "presets": (
        lambda given: (
            isinstance(given.presets, Mapping)
            and all(isinstance(fields, Mapping) for fields in given.presets.values())
            and (len(given.presets) > 0 or given.reads_any_model)
        ),
        'at least one variant with its fields, such as presets = {"plain": {}}',
    ),
}
"""Per field of a user's architecture: whether it can be used, and what to give."""


def _check_complete(architecture: Architecture) -> None:
    """Raise a ConfigError for a field of another type, an incomplete mixer, or a preset that the tables do not take."""
    for field, (fits, needed) in _NEEDED.items():
        if not fits(architecture):
            raise ConfigError(
                f"architecture '{architecture.name}': {field} is {shown(getattr(architecture, field))}. Give {needed}."
            )
    for kind in architecture.mixers:
        if missing := missing_parts(kind):
            raise ConfigError(
                f"{kind.__module__}.{kind.__name__} does not define {', '.join(missing)}, which every mixer needs. "
                "retbench.mixers.mixer.Mixer says what each of them is."
            )
        if kind.default_form not in kind.forms:
            raise ConfigError(
                f"{kind.__module__}.{kind.__name__}: default_form is {shown(kind.default_form)}, and its forms are "
                f"{', '.join(kind.forms)}. Name one of them."
            )
    for variant, fields in architecture.presets.items():
        try:
            architecture.spec.model_validate({"architecture": architecture.name, **fields})
        except ValidationError as error:
            where = f"architecture '{architecture.name}', presets['{variant}']"
            raise ConfigError(explain(error, architecture.spec, where)) from error


def find_architecture(name: str) -> Architecture:
    """Return the architecture called `name`; ConfigError with a suggestion when there is none."""
    if name not in architectures():
        raise unknown_name("architecture", name, architectures())
    return architectures()[name]


@cache
def _own_mixers() -> Mapping[str, type[Mixer]]:
    """Return the mixers of this package by name; none of them needs an architecture to be found."""
    return {mixer_name(folder.MIXER): folder.MIXER for folder in _mixer_folders()}


def _mixer_folders() -> Iterator[ModuleType]:
    """Yield the package of each mixer's folder."""
    for found in iter_modules(own_mixers.__path__):
        if found.ispkg:
            yield import_module(f"{own_mixers.__name__}.{found.name}")


@cache
def channel_mixers() -> Mapping[str, type[ChannelMixer]]:
    """Return every kind of channel mixer by name: the feed-forwards, and those that come with a mixer."""
    brought = [folder.CHANNEL_MIXER for folder in _mixer_folders() if hasattr(folder, "CHANNEL_MIXER")]
    return {
        name: kind
        for kind in (FeedForward, *brought)
        for name in get_args(kind.model_fields["kind"].annotation)
    }


def find_channel_mixer(name: str) -> type[ChannelMixer]:
    """Return the kind of channel mixer called `name`; ConfigError with a suggestion when there is none."""
    if name not in channel_mixers():
        raise unknown_name("channel mixer", name, channel_mixers())
    return channel_mixers()[name]


def mixers() -> dict[str, type[Mixer]]:
    """Return every kind of mixer by name."""
    brought = {mixer_name(kind): kind for each in architectures().values() for kind in each.mixers}
    return {**_own_mixers(), **brought}


def mixer_name(kind: type[Mixer]) -> str:
    """Return what configurations call a kind of mixer."""
    return str(kind.model_fields["mixer"].default)


def find_mixer(name: str) -> type[Mixer]:
    """Return the kind of mixer called `name`; ConfigError with a suggestion when there is none."""
    known = _own_mixers()
    if name not in known:
        known = mixers()
    if name not in known:
        raise unknown_name("mixer", name, known)
    return known[name]


def upgrade_config(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a model's configuration in today's format: older ones are one flat table by architecture."""
    name = raw.get("architecture")
    if "blocks" in raw or not isinstance(name, str) or name not in architectures():
        return raw
    upgrade = architectures()[name].upgrade
    if upgrade is None:
        return raw
    fields = {field: value for field, value in raw.items() if field != "architecture"}
    try:
        return upgrade(**fields).model_dump()
    except TypeError as error:  # fields are missing, unknown or of another type
        raise ValueError(f"no model of architecture {name!r}: {error}") from error


def named_specs() -> dict[str, ModelSpec]:
    """Return every architecture in every preset, by the name that `retbench verify` takes.

    The first preset of an architecture is called after the architecture alone.
    """
    found = {}
    for each in architectures().values():
        for index, (preset, fields) in enumerate(each.presets.items()):
            name = f"{each.name}-{preset}" if index else each.name
            found[name] = each.spec.model_validate({"architecture": each.name, **fields})
    return found


def counterpart_of(architecture: str) -> str:
    """Return the architecture that one is compared with: the baseline, or for the baseline the first of the others."""
    wanted = not is_baseline(architecture)
    return next(each.name for each in architectures().values() if each.is_baseline == wanted)


def title_of(architecture: str) -> str:
    """Return the proper name of an architecture: 'retnet' -> 'RetNet'; an unknown one is its own title."""
    known = architectures().get(architecture)
    return known.title if known else architecture


def is_baseline(architecture: str) -> bool:
    """Return whether other models are compared with this architecture."""
    known = architectures().get(architecture)
    return known is not None and known.is_baseline
