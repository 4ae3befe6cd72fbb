"""Where data is read from and where what is made of it is kept.

Data: the folder of `--data-dir`, else that of RETBENCH_DATA, else none. Cache: RETBENCH_CACHE, else ~/.cache/retbench;
whatever is in it can be made again.
"""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from retbench.errors import ConfigError


def cache_dir() -> Path:
    """Folder of what can be made again; it need not exist yet."""
    given = os.environ.get("RETBENCH_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "retbench"


def data_folder(given: Path | None = None) -> Path | None:
    """The folder that names of corpora, tokenizers and checkpoints are looked up in; None where none was named.

    Args:
        given: That of `--data-dir`; RETBENCH_DATA counts where it is None.

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
    """The file or folder that `name` stands for: a path as it is, else a path below the data folder.

    Args:
        name: As the user gave it.
        kind: What it should be, for the message, e.g. "corpus".
        data_dir: See `data_folder`.
        known: Names that need no file, for the message.
        below: Where below the data folder to look instead of `name`, for a short name that stands for a longer one.

    Raises:
        ConfigError: there is no such file; the nearest name is suggested.
    """
    if not name.strip():
        raise ConfigError(f"the {kind} has an empty name. Give a name or a path.")
    if os.path.exists(os.path.expanduser(name)):  # unlike Path.exists, false for a name too long to exist
        return Path(name).expanduser()
    root = data_folder(data_dir)
    if root is not None and os.path.exists(root / (below or name)):
        return root / (below or name)
    names = sorted({*known, *(os.listdir(root) if root is not None else ())})
    near = get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    searched = f"nor is it below {root}" if root is not None else "and no data folder was named"
    built_in = f" Built in: {', '.join(sorted(known))}." if known else ""
    raise ConfigError(
        f"unknown {kind} '{name}': there is no such path, {searched}.{hint}{built_in} Give a path, hub:REPO, or a "
        "name below the folder of --data-dir or RETBENCH_DATA."
    )
