"""Experiment files: where they are, and how they are read, changed by overrides and checked."""

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from retbench.config.experiment import Experiment, scalars_of
from retbench.config.overrides import apply_overrides
from retbench.config.own_models import NO_OWN_MODELS, OwnModels, check_trust, replace_models
from retbench.errors import ConfigError, shown, unknown_name
from retbench.parsing import parse_toml
from retbench.strict import NAME_RULE, explain
from retbench.units import GB

PAPER_MEMORY_BYTES = 70 * GB
"""A device with this much memory (80 GB cards and larger) runs the profile `paper` by default."""

_COMPLETED = r"profiles\..+?\.(?=models\.)"
"""Beginning of the places in a profile that may have been completed from the experiment's models."""

_PLAIN_SPACE = str.maketrans("", "", "\n\t\xa0")
"""Characters that do not count as printable and may stand in a text."""


def default_profile(name_or_path: str, memory_bytes: int | None) -> str:
    """Return the name of the profile that a device runs where none is given: the experiment's only one, if it is.

    Args:
        name_or_path: As of `load_experiment`.
        memory_bytes: Memory of a CUDA device; None for the CPU.

    Raises:
        ConfigError: the file is absent or not TOML.
    """
    profiles = _read(name_or_path).raw.get("profiles")
    if isinstance(profiles, dict) and len(profiles) == 1:
        return str(next(iter(profiles)))
    return "paper" if memory_bytes is not None and memory_bytes >= PAPER_MEMORY_BYTES else "cpu"


def experiments_dir() -> Path:
    """Return the folder of the experiment files: inside the installed wheel, or `experiments/` of the checkout."""
    packaged = Path(str(resources.files("retbench"))) / "experiments"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "experiments"


def list_experiments() -> dict[str, Path]:
    """Return the path of every shipped experiment by name."""
    return {path.stem: path for path in sorted(experiments_dir().glob("*.toml"))}


def load_experiment(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    profile: str | None = None,
    own_models: OwnModels = NO_OWN_MODELS,
) -> Experiment:
    """Read an experiment by its name in `experiments/` or by the path of a TOML file.

    Args:
        name_or_path: `latency`, or a path that ends in `.toml`.
        overrides: `key=value` items as given to `--set`; the value is TOML. A key is a field of the profile
            (`rounds=3`, `workloads.decode.context_len=[1024]`) or starts with `models.`
            (`models.retnet.variant=torchscale`). The key `models` lists the models to keep.
        profile: The profile that override keys without a prefix change; every profile when None.
        own_models: Checkpoints that replace the experiment's models.

    Raises:
        ConfigError: the file is absent, is not TOML, or holds something unknown or out of range.
    """
    path, place, raw = _read(name_or_path)
    if "name" in raw:
        raise ConfigError(
            f"{place}: the field 'name' is not allowed; an experiment is called after its file. Remove it."
        )
    check_trust(raw, place)
    if own_models.checkpoints:
        replace_models(raw, own_models)
    apply_overrides(raw, overrides, profile)
    for text in scalars_of(raw):
        if isinstance(text, str) and not text.translate(_PLAIN_SPACE).isprintable():
            raise ConfigError(f"{place}: {shown(text)} has characters that cannot be printed. Remove them.")
    try:
        return Experiment.model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        if any(fault["loc"] == ("name",) for fault in error.errors()):
            raise ConfigError(
                f"{place}: an experiment is called after its file, and {shown(path.stem)} becomes part of a path. "
                f"Rename the file. {NAME_RULE}"
            ) from error
        where = ", ".join([place, *(f"--set {shown(item)[1:-1]}" for item in overrides)])
        tables = raw.get("models")
        known = tables.items() if isinstance(tables, dict) else ()
        whole = [name for name, table in known if isinstance(table, dict) and "architecture" in table]
        raise ConfigError(explain(error, Experiment, where, whole, _COMPLETED)) from error


class _File(NamedTuple):
    """The file of an experiment, as messages name it, and its contents."""

    path: Path
    place: str
    raw: dict[str, Any]


def _read(name_or_path: str) -> _File:
    """Read the file of an experiment; ConfigError if it is absent or not TOML.

    Editors on Windows begin a file with a byte order mark, which is skipped.
    """
    path = _find(name_or_path)
    is_path = name_or_path.endswith(".toml")
    place = shown(str(path)).strip("'\"") if is_path else f"experiment '{name_or_path}'"
    try:
        return _File(path, place, parse_toml(path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{place}: cannot be read: {error}. Check the path and that it is a UTF-8 text file."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{place}: not valid TOML: {error}. Correct the file there.") from error


def _find(name_or_path: str) -> Path:
    """Return the path of an experiment file; ConfigError with a suggestion when there is none."""
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not os.path.isfile(path):  # unlike Path.is_file, false for a name too long to exist
            raise ConfigError(
                f"no experiment file at {shown(name_or_path)}. Give an existing TOML file or a name from "
                "`retbench list`."
            )
        return path
    known = list_experiments()
    if name_or_path not in known:
        raise unknown_name("experiment", name_or_path, known)
    return known[name_or_path]
