"""Items `key=value` of `--set`, which change the parsed TOML of an experiment before it is checked."""

import tomllib
from collections.abc import Sequence
from typing import Any

from retbench.errors import ConfigError, shown, unknown_name
from retbench.parsing import MAX_DEPTH, parse_toml

READ_BY_TRAINING = frozenset(
    {"training", "models", "threads", "activation_checkpointing", "allow_mismatch", "trained_by"}
)
"""Fields of a profile that a training reads; the others are for measurements."""
_MODELS = "models"
"""Key of the item that lists the models to keep."""


def field_of(item: str) -> str:
    """Return the field of a profile that an item changes, or `models`."""
    return _key_of(item).partition(".")[0].strip()


def apply_overrides(raw: dict[str, Any], items: Sequence[str], profile: str | None) -> None:
    """Set each `key=value` in the parsed TOML, in place; of the models keep those that `models=[NAME, ...]` lists.

    Args:
        raw: The tables of an experiment file.
        items: The items; a value is TOML, or bare words.
        profile: The profile that a key without a prefix changes; every profile when None.

    Raises:
        ConfigError: an item is not of that form, its value is not TOML, its key leads through what is no table, two
            items have one key, or there is no model of a name to keep.
    """
    keys = list(map(_key_of, items))
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ConfigError(f"--set {shown(twice)[1:-1]}: given {keys.count(twice)} times. Give it once.")
    for item in sorted(items, key=lambda item: _key_of(item) == _MODELS):
        value = _value_of(item)
        if _key_of(item) == _MODELS:
            _keep_models(raw, item, value)
        else:
            _apply(raw, item, value, profile)


def _key_of(item: str) -> str:
    return item.partition("=")[0].strip()


def _value_of(item: str) -> Any:
    """Return the value of an item, which is TOML or bare words."""
    key, sign, text = item.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {shown(item)}: not of the form key=value. Example: --set rounds=3")
    try:
        item.encode()  # bytes of the command line that are not UTF-8 are halves of surrogate pairs
        return parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return _bare_words(text.strip())
    except ValueError as error:
        raise ConfigError(f"--set {shown(item)}: {error}. Correct the value.") from error


def _keep_models(raw: dict[str, Any], item: str, value: Any) -> None:
    """Remove all models but those that a value lists, from the experiment and from its profiles."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"--set {shown(item)}: takes the names of the models to keep. Example: --set models=[retnet,transformer]"
        )
    holders = [one for one in tables_with_models(raw) if isinstance(one.get("models"), dict)]
    known = dict.fromkeys(name for holder in holders for name in holder["models"])
    for name in names:
        if name not in known:
            raise unknown_name("model", name, known, where="--set models")
    for holder in holders:
        holder["models"] = {name: table for name, table in holder["models"].items() if name in names}


def tables_with_models(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of an experiment file that may hold models: the file itself, and each profile."""
    profiles = raw.get("profiles")
    tables = profiles.values() if isinstance(profiles, dict) else ()
    return [raw, *(table for table in tables if isinstance(table, dict))]


def _apply(raw: dict[str, Any], item: str, value: Any, profile: str | None) -> None:
    parts = _key_of(item).split(".")
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"--set {shown(item)}: the key has {len(parts)} parts. Check the key.")
    for target in _override_targets(raw, parts, profile):
        node = target
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {shown(item)}: '{part}' is not a table. Check the key.")
        node[parts[-1]] = value


def _bare_words(text: str) -> str | list[Any]:
    """Return a value that is not TOML: a bare word is a string (float16, 8K), and a list may have them ([1K, 32K])."""
    if not (text.startswith("[") and text.endswith("]")) or any(sign in text for sign in "\"'{"):
        return text
    words = [word.strip() for word in text[1:-1].strip().removesuffix(",").split(",")]
    return [int(word) if word.isascii() and word.isdecimal() else word for word in words]


def _override_targets(raw: dict[str, Any], parts: list[str], profile: str | None) -> list[dict[str, Any]]:
    """Return the tables that an override changes; what should be a table and is not is left to validation.

    A field of a model is changed in the experiment, and in the profile if that replaces fields of the model or adds it.
    """
    profiles = raw.get("profiles")
    tables = list(profiles.values()) if isinstance(profiles, dict) else []
    if isinstance(profiles, dict) and profile in profiles:
        tables = [profiles[profile]]
    if parts[0] != "models":
        return [table for table in tables if isinstance(table, dict)]
    own = [table for table in tables if _has_model(table, parts[1:2])]
    return own if own and not _has_model(raw, parts[1:2]) else [raw, *own]


def _has_model(table: object, name: list[str]) -> bool:
    """Return whether an experiment's or a profile's table has a table for a model."""
    models = table.get("models") if isinstance(table, dict) else None
    return isinstance(models, dict) and models.keys() >= set(name)
