"""Where a checkpoint is: a path, a path below the data folder, or a repository on the Hugging Face hub.

A repository is fetched whole at one commit, which is part of what is read: the public matched pairs have theirs here,
any other takes --revision or today's `main`, and the commit that this turns out to be is recorded.
"""

import re
from pathlib import Path
from typing import NamedTuple

from retbench.data import hub, places
from retbench.errors import ConfigError, UnsupportedError

PATTERNS = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt")
"""What is fetched: never a pickle, never code."""

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[^@\s]+)?")
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
        name: A path; a path below the data folder; or OWNER/REPOSITORY[@REVISION] on the hub, with `hub:` before it
            or, where it is no path, without.
        revision: A commit, branch or tag of the repository; its pinned commit, else `main`, when None.
        data_dir: The data folder; that of RETBENCH_DATA when None.

    Raises:
        ConfigError: no such path, repository or revision; a revision of something local.
        UnsupportedError: the hub cannot be reached.
    """
    if not name.startswith(hub.PREFIX):
        try:
            path = places.find(name, kind="checkpoint", data_dir=data_dir)
        except ConfigError:
            if not _REPOSITORY.fullmatch(name):
                raise
        else:
            if revision is not None:
                raise ConfigError(
                    f"--revision {revision}: '{name}' is here, at {path}, and has no revisions."
                )
            return Located(path, None)
    asked = hub.parse_name(hub.PREFIX + name.removeprefix(hub.PREFIX), revision)
    return _fetch(name, asked._replace(revision=asked.revision or pinned_revision(asked.repo)))


def _fetch(name: str, asked: hub.HubName) -> Located:
    """The folder of a repository at a commit, downloaded unless the hub's cache has it; it is named by the commit."""
    try:
        path = hub.download_files(name, asked, PATTERNS)
    except UnsupportedError as error:
        at = f" --revision {asked.revision}" if asked.revision else ""
        raise UnsupportedError(
            f"{error} Where there is a network: hf download {asked.repo}{at} --local-dir FOLDER. Then give FOLDER in "
            f"place of '{name}'."
        ) from error
    return Located(path, path.name if _COMMIT.fullmatch(path.name) else asked.revision)
