"""Corpora by name.

    python                          CPython's own library: real text on every machine, no download
    PATH, or a name below the data folder
                                    a folder of text files, or one file: classic_books, litbank/original, wikitext-103
    hub:OWNER/NAME[/CONFIG][@REVISION]
                                    a data set of the hub, streamed

How files become documents, `sources` says; how documents are split, `splits`.
"""

from pathlib import Path

from retbench.data import hub, standard_library
from retbench.data.corpus import Corpus, Document
from retbench.data.file_corpus import FileCorpus
from retbench.data.hub_corpus import HubCorpus
from retbench.data.places import find
from retbench.data.sources import TextFile, list_files
from retbench.errors import ConfigError

__all__ = ["PYTHON", "Corpus", "Document", "load_corpus"]

PYTHON = "python"


def load_corpus(name: str, *, data_dir: Path | None = None, revision: str | None = None) -> Corpus:
    """The corpus of that name; see the module for what a name may be.

    Args:
        name: "python", a path, a name below the data folder, or `hub:...`. A folder called python is "./python".
        data_dir: The data folder; that of RETBENCH_DATA when None.
        revision: Of a hub data set; its newest commit when None.

    Raises:
        ConfigError: there is no such corpus, or it holds no text, or something that is not text.
        UnsupportedError: the hub cannot be reached, or a package is missing.
    """
    if name.startswith(hub.PREFIX):
        return HubCorpus(name, revision)
    if revision is not None:
        raise ConfigError(f"the corpus '{name}' has no revisions; only one of the hub has. Leave it out.")
    if name == PYTHON:
        root = standard_library.root()
        return FileCorpus(
            name, [TextFile(path.relative_to(root).as_posix(), path) for path in standard_library.paths()]
        )
    return FileCorpus(name, list_files(find(name, kind="corpus", data_dir=data_dir, known=[PYTHON])))
