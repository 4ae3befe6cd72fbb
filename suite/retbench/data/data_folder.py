"""The data folder, in which names are looked up: that of `--data-dir`, else of RETBENCH_DATA, else none."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from retbench.errors import ConfigError, shown


def data_folder(given: Path | None = None) -> Path | None:
    """Return the folder in which names of corpora, tokenizers and checkpoints are looked up, if one was named.

    Args:
        given: The folder of `--data-dir`; None for that of RETBENCH_DATA.

    Raises:
        ConfigError: the folder does not exist.
    """
    from_environment = os.environ.get("RETBENCH_DATA")
    if given is None and not from_environment:
        return None
    folder = given if given is not None else Path(str(from_environment)).expanduser()
    if not folder.is_dir():
        origin = "--data-dir" if given is not None else "RETBENCH_DATA"
        raise ConfigError(f"{origin}: '{folder}' is not a folder. Give the folder that holds the data.")
    return folder


def find(
    name: str, *, kind: str, data_dir: Path | None = None, known: Iterable[str] = (), below: str | None = None
) -> Path:
    """Return the file or folder that `name` stands for: an existing path, else a path below the data folder.

    Args:
        name: The user's spelling.
        kind: Kind of data for the message, e.g. "corpus".
        data_dir: See `data_folder`.
        known: Names that need no file, for the message.
        below: Path below the data folder to use instead of `name`, where `name` is an abbreviation.

    Raises:
        ConfigError: there is no such file; the nearest name is suggested.
    """
    if not name.strip():
        raise ConfigError(f"the {kind} has an empty name. Give a name or a path.")
    path = os.path.expanduser(name)
    if os.path.exists(path):  # unlike Path.exists, false for a name too long to exist
        return Path(path)
    root = data_folder(data_dir)
    if root is not None and os.path.exists(root / (below or name)):
        return root / (below or name)
    names = sorted({*known, *(os.listdir(root) if root is not None else ())})
    near = get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    searched = f"nor is it below {root}" if root is not None else "and no data folder was named"
    built_in = f" Built in: {', '.join(sorted(known))}." if known else ""
    raise ConfigError(
        f"unknown {kind} {shown(name)}: there is no such path, {searched}.{hint}{built_in} Give a path, hub:REPO, or a "
        "name below the folder of --data-dir or RETBENCH_DATA."
    )
