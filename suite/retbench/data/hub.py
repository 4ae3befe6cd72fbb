"""Names, revisions and files of the Hugging Face hub, and what its errors mean to the user.

hub:REPO[@REVISION]            a tokenizer or a model
hub:OWNER/NAME[/CONFIG][@REVISION]   a data set
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from retbench.data.packages import load_package
from retbench.errors import ConfigError, UnsupportedError

PREFIX = "hub:"
_NAME = re.compile(r"hub:(?P<repo>[^/@\s]+(/[^/@\s]+)?)(/(?P<config>[^/@\s]+))?(@(?P<revision>[^@\s]+))?")


class HubName(NamedTuple):
    """A name on the hub, taken apart."""

    repo: str
    config: str | None
    """Of a data set; None for its only one."""
    revision: str | None
    """A branch, tag or commit; None for the newest."""


def parse_name(name: str, revision: str | None = None) -> HubName:
    """What `hub:...` names.

    Args:
        name: With its `hub:`.
        revision: That of an option beside the name.

    Raises:
        ConfigError: it is not of that form, or names another revision than the option.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ConfigError(
            f"'{name}': not a name on the hub. Write hub:OWNER/NAME, for a data set hub:OWNER/NAME/CONFIG, with "
            "@REVISION at the end for a certain one."
        )
    if revision and found["revision"] and revision != found["revision"]:
        raise ConfigError(
            f"'{name}' names the revision {found['revision']}, the option {revision}. Give one of them."
        )
    return HubName(found["repo"], found["config"], revision or found["revision"])


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns the errors of the hub's libraries into one message: what the user got wrong, or what the machine lacks."""
    errors = load_package("huggingface_hub.errors", f"'{name}'")
    try:
        yield
    except errors.GatedRepoError as error:
        raise UnsupportedError(
            f"'{name}': access has to be granted by its owner first. Ask for it on the hub and log in with "
            "`hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"'{name}': the hub has it, but no such revision. Check the revision.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ConfigError(
            f"'{name}': the hub has nothing of that name, or it is private. Check it, or log in with `hf auth login`."
        ) from error
    except (OSError, errors.HTTPError) as error:  # no network, offline mode, nothing in the local cache
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UnsupportedError(
            f"'{name}': the hub cannot be reached ({reason}). Check the network, or give the path of a local copy."
        ) from error


def resolve_revision(name: str, hub_name: HubName, repo_type: Literal["dataset", "model"]) -> str:
    """The commit that a revision is now: what makes a run repeatable.

    Args:
        name: As the user gave it, for messages.
        hub_name: Taken apart.
        repo_type: What it is on the hub.

    Raises:
        ConfigError: the hub has no such repository or revision.
        UnsupportedError: the hub cannot be reached, or `huggingface_hub` is not installed.
    """
    with explained(name):
        api = load_package("huggingface_hub", f"'{name}'").HfApi()
        info: Any = api.repo_info(hub_name.repo, revision=hub_name.revision, repo_type=repo_type)
        return str(info.sha)


def download_files(name: str, hub_name: HubName, patterns: Sequence[str]) -> Path:
    """Folder with those files of a model's repository that match `patterns`; the local cache's where offline.

    Raises:
        ConfigError: the hub has no such repository or revision.
        UnsupportedError: the hub cannot be reached, or `huggingface_hub` is not installed.
    """
    if hub_name.config is not None:
        raise ConfigError(f"'{name}': only a data set has a third part. Write hub:OWNER/NAME.")
    with explained(name):
        library = load_package("huggingface_hub", f"'{name}'")
        return Path(
            library.snapshot_download(
                hub_name.repo, revision=hub_name.revision, allow_patterns=list(patterns)
            )
        )
