"""Names, revisions and files of the Hugging Face hub, and readable messages for its errors.

hub:REPO[@REVISION]                  a tokenizer or a model
hub:OWNER/NAME[/CONFIG][@REVISION]   a data set
"""

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from retbench.errors import ConfigError, StorageError, UnsupportedError, shown

PREFIX = "hub:"
_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
_NAME = re.compile(r"hub:(?P<repo>[^/@\s]+(/[^/@\s]+)?)(/(?P<config>[^/@\s]+))?(@(?P<revision>[^@\s]+))?")


class HubName(NamedTuple):
    """A parsed name on the hub."""

    repo: str
    config: str | None
    """Configuration of a data set; None for a data set that has only one."""
    revision: str | None
    """Branch, tag or commit; None for the newest commit."""


def parse_name(name: str, revision: str | None = None) -> HubName:
    """Parse `hub:...`.

    Args:
        name: The name, with its `hub:`.
        revision: Revision given by a separate option.

    Raises:
        ConfigError: the name has another form, or its revision contradicts the option.
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


_OFFLINE = "Check the network, or give the path of a local copy."


@contextmanager
def translate_hub_errors(name: str, *, offline: str = _OFFLINE) -> Iterator[None]:
    """Turn an error of the hub's libraries into one message: a wrong request, or something this machine lacks.

    Args:
        name: Name of what is asked of the hub, as the user gave it.
        offline: Advice for a hub that cannot be reached.
    """
    from huggingface_hub import errors

    http_error: type[Exception] = vars(errors)["HTTPError"]  # of a library that differs between its versions
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
    except errors.HfHubHTTPError as error:
        if error.response.status_code not in {401, 403}:
            raise _unreachable(name, error, offline) from error
        raise ConfigError(
            f"'{name}': the hub does not let you do this (status {error.response.status_code}). Log in with "
            "`hf auth login` as somebody who may."
        ) from error
    except (OSError, http_error) as error:  # no network, offline mode, or nothing in the local cache
        if isinstance(error, OSError) and error.errno in _DISK_FAULTS:
            raise StorageError(
                f"'{name}': a download cannot be stored ({error.strerror}). Free some space, or name another folder by "
                "HF_HOME; the same command then continues."
            ) from error
        raise _unreachable(name, error, offline) from error


def _unreachable(name: str, error: Exception, advice: str) -> UnsupportedError:
    """Return the error for a hub that does not answer, or not as it should."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UnsupportedError(f"'{name}': the hub cannot be reached ({reason}). {advice}")


def resolve_revision(name: str, hub_name: HubName) -> str:
    """Return the commit that a data set's revision stands for now, which makes a run repeatable.

    Raises:
        ConfigError: the hub has no such repository or revision.
        UnsupportedError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with translate_hub_errors(name):
        return str(HfApi().repo_info(hub_name.repo, revision=hub_name.revision, repo_type="dataset").sha)


def download_files(name: str, hub_name: HubName, patterns: Sequence[str]) -> Path:
    """Download the matching files of a model's repository and return their folder; offline, use the local cache.

    Raises:
        ConfigError: the hub has no such repository or revision.
        UnsupportedError: the hub cannot be reached.
    """
    if hub_name.config is not None:
        raise ConfigError(f"'{name}': only a data set has a third part. Write hub:OWNER/NAME.")
    from huggingface_hub import snapshot_download

    with translate_hub_errors(name):
        return Path(
            snapshot_download(hub_name.repo, revision=hub_name.revision, allow_patterns=list(patterns))
        )


def check_dataset_name(name: str) -> None:
    """Raise ConfigError for a name that no dataset of a user can have."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"{shown(name)}: not the name of a dataset. Give OWNER/NAME.")


def push_dataset(name: str, contents: Mapping[str, Path | bytes], message: str, *, private: bool) -> str:
    """Upload files to a dataset in one commit, and return the address of the commit.

    Args:
        name: OWNER/NAME; the dataset is made if it is new.
        contents: Files or their contents, by path in the dataset; other files of it stay.
        message: Message of the commit.
        private: Make a new dataset private.

    Raises:
        ConfigError: the name is not one of a dataset, or is not the user's.
        UnsupportedError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_dataset_name(name)
    with translate_hub_errors(name, offline="Check the network, then push again."):
        api = HfApi()
        api.create_repo(name, repo_type="dataset", private=private or None, exist_ok=True)
        operations = [
            CommitOperationAdd(path_in_repo=place, path_or_fileobj=content)
            for place, content in contents.items()
        ]
        return str(
            api.create_commit(name, operations, commit_message=message, repo_type="dataset").commit_url
        )
