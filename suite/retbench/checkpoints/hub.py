"""Where a checkpoint is: a path, a name below the data folder, or a repository on the Hugging Face hub.

A repository is fetched whole at one commit, which is part of what is read: the public matched pairs have theirs here,
any other takes --revision or today's `main`, and the commit that this turns out to be is recorded.
"""

import re
from pathlib import Path
from typing import NamedTuple

from retbench.errors import ConfigError, UnsupportedError

HUB_PREFIX = "hub:"
PATTERNS = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt")
"""What is fetched: never a pickle, never code."""

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class PublicPair(NamedTuple):
    """A RetNet and a Transformer that were trained alike by others.

    A revision is the commit that was read; None where none is known to be the one of the published numbers.
    """

    retnet: str
    transformer: str
    data: str
    retnet_revision: str | None
    transformer_revision: str | None


PUBLIC_PAIRS: dict[str, PublicPair] = {
    "1.3b": PublicPair(
        "fla-hub/retnet-1.3B-100B",
        "fla-hub/transformer-1.3B-100B",
        "100B tokens of SlimPajama",
        "7fddefc4d5e196a8d1f076bb7612d54321b3effe",
        "d6f66f4181fa669e5863327815b44533e3a395e7",
    ),
    "2.7b": PublicPair(
        "fla-hub/retnet-2.7B-100B",
        "fla-hub/transformer-2.7B-100B",
        "100B tokens of SlimPajama",
        None,
        "e29b06c913e05827bfb534844267c8d9f673feda",
    ),
}


class Located(NamedTuple):
    """A checkpoint on this machine."""

    path: Path
    revision: str | None


def pinned_revision(repository: str) -> str | None:
    """The commit that a public checkpoint is read at; None where it has none."""
    revisions = {}
    for pair in PUBLIC_PAIRS.values():
        revisions[pair.retnet] = pair.retnet_revision
        revisions[pair.transformer] = pair.transformer_revision
    return revisions.get(repository)


def locate(name: str, *, revision: str | None = None, data_dir: Path | None = None) -> Located:
    """The checkpoint `name` on this machine, fetched from the hub where it is none of here.

    Args:
        name: A path; or a path below `data_dir`; or OWNER/REPOSITORY on the hub, with or without `hub:` before it.
        revision: A commit, branch or tag of the repository; its pinned commit, else `main`, when None.
        data_dir: Folder of local data.

    Raises:
        ConfigError: there is no such path and it is no name of a repository; a revision of something local.
        UnsupportedError: the hub cannot be reached, or does not have it.
    """
    local = None if name.startswith(HUB_PREFIX) else _find_local(name, data_dir)
    if local is not None:
        if revision is not None:
            raise ConfigError(f"--revision {revision}: '{name}' is a local path, which has no revisions.")
        return Located(local, None)
    repository = name.removeprefix(HUB_PREFIX)
    if not _REPOSITORY.fullmatch(repository):
        below = f" or below {data_dir}" if data_dir is not None else ""
        raise ConfigError(
            f"'{name}': no such file or folder here{below}, and not OWNER/REPOSITORY, the form of a name on the hub."
        )
    path = _fetch(repository, revision or pinned_revision(repository))
    return Located(path, path.name if _COMMIT.fullmatch(path.name) else revision)


def _find_local(name: str, data_dir: Path | None) -> Path | None:
    """The path that a name means on this machine, if any."""
    candidates = [Path(name).expanduser(), *([data_dir / name] if data_dir is not None else [])]
    return next((path for path in candidates if path.exists()), None)


def _fetch(repository: str, revision: str | None) -> Path:
    """The folder of a repository at a commit, downloaded unless it is in the hub's cache; named after the commit."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(PATTERNS))
        )
    except (
        OSError,
        ValueError,
    ) as error:  # all errors of the hub's library and of its connections are one of them
        asked = f" --revision {revision}" if revision else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedError(
            f"{repository} is no file or folder here and cannot be fetched from the hub: {reason}\nWhere there is a "
            f"connection, run: hf download {repository}{asked} --local-dir FOLDER; then give the path of that folder."
        ) from error
