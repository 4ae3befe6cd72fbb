"""Readers of local data: each gives rows with the fields of the hub's dataset, which lm-eval's prompts are made of."""

import csv
import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

Row = dict[str, Any]
LETTERS = "ABCDEFGH"
WINOGRAD_SCHEMAS = 273
"""The collection grew to 285 later; the task is of the first."""


def read_lines(path: Path, *, convert: Callable[[Row], Row] | None = None) -> list[Row]:
    """One JSON object a line."""
    rows: list[Row] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number}: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"line {number}: no JSON object")
                rows.append(convert(row) if convert else row)
    return rows


def read_arrow(path: Path, *, convert: Callable[[Row], Row] | None = None) -> list[Row]:
    """A folder that `datasets` saved one split to."""
    from datasets import load_from_disk

    rows: list[Row] = load_from_disk(str(path)).to_list()
    return [convert(row) for row in rows] if convert else rows


def read_requests(path: Path, *, convert: Callable[[Row], Row]) -> list[Row]:
    """Requests of OLMo's evaluation, several a document: each document once, in order."""
    documents: dict[Any, Row] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            documents.setdefault(request["native_id"], request["doc"])
    return [convert(document) for document in documents.values()]


def read_piqa(questions: Path, labels: Path) -> list[Row]:
    """PIQA's own two files."""
    rows = read_lines(questions)
    answers = [int(label) for label in labels.read_text(encoding="utf-8").split()]
    if len(rows) != len(answers):
        raise ValueError(f"{len(rows)} questions and {len(answers)} labels in {labels.name}")
    return [{**row, "label": label} for row, label in zip(rows, answers, strict=True)]


def read_storycloze(path: Path) -> list[Row]:
    """Story Cloze's own table, as its authors send it."""
    with path.open(encoding="utf-8", newline="") as lines:
        return [
            {
                "story_id": row["InputStoryid"],
                **{f"input_sentence_{n}": row[f"InputSentence{n}"] for n in range(1, 5)},
                **{f"sentence_quiz{n}": row[f"RandomFifthSentenceQuiz{n}"] for n in (1, 2)},
                "answer_right_ending": int(row["AnswerRightEnding"]),
            }
            for row in csv.DictReader(lines)
        ]


def read_winograd_xml(path: Path) -> list[Row]:
    """Davis's collection of Winograd schemas, with the places of pronoun and quote that the hub's dataset has."""
    schemas = ElementTree.parse(path).getroot().findall("schema")
    return [_winograd_row(schema) for schema in schemas[:WINOGRAD_SCHEMAS]]


def _winograd_row(schema: ElementTree.Element) -> Row:
    """One schema."""

    def text_of(place: str) -> str:
        return " ".join((schema.findtext(place) or "").split())

    before, pronoun, after = (text_of(f"text/{part}") for part in ("txt1", "pron", "txt2"))
    quoted_before = text_of("quote/quote1")
    place = len(before) + 1 if before else 0
    return {
        "text": " ".join([before, pronoun, after]).strip(),
        "pronoun": pronoun,
        "pronoun_loc": place,
        "quote": " ".join([quoted_before, text_of("quote/pron"), text_of("quote/quote2")]).strip(),
        "quote_loc": place - (len(quoted_before) + 1 if quoted_before else 0),
        "options": [" ".join((answer.text or "").split()) for answer in schema.findall("answers/answer")],
        "label": int("B" in text_of("correctAnswer")),
        "source": text_of("source"),
    }


def read_winograd_text(path: Path) -> list[Row]:
    """Blocks of four lines: the text with a masked pronoun, the mask, both options, the right one."""
    rows = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip()):
        text, mask, options, answer = (" ".join(line.split()) for line in block.splitlines())
        both = [" ".join(option.split()) for option in options.split(",")]
        rows.append(
            {
                "text": text,
                "pronoun": mask,
                "pronoun_loc": text.index(mask),
                "options": both,
                "label": [option.casefold() for option in both].index(answer.casefold()),
            }
        )
    return rows


def read_wikitext(path: Path) -> list[Row]:
    """A raw WikiText file, an article a document, as EleutherAI/wikitext_document_level has them."""
    return _articles(path.read_text(encoding="utf-8"))


def read_wikitext_rows(path: Path) -> list[Row]:
    """A raw WikiText file whose paragraphs were joined by empty lines: they are put back as they were.

    The hub's dataset has a row a paragraph, each with its newline, and empty ones for blank lines. Joined by two
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
    """Pages that begin with a heading of the first level."""
    pages: list[list[str]] = [[]]
    for line in text.split("\n"):
        marks = line.replace("= = =", "===").replace("= =", "==").strip()
        if marks.startswith("= ") and marks.endswith(" =") and any(part.strip() for part in pages[-1]):
            pages.append([])
        elif marks.startswith("= ") and marks.endswith(" ="):
            pages[-1] = []
        pages[-1].append(line)
    return [{"page": "\n".join(lines)} for lines in pages]


def boolq_row(row: Row) -> Row:
    """google/boolq as aps/super_glue has it, but for the titles before its passages."""
    return {"question": row["question"], "passage": row["passage"], "label": int(row["answer"])}


def arc_row(document: Row) -> Row:
    """A document of OLMo's ARC: the question out of its prompt, the answer by letter."""
    return {"id": document["id"], "question": _question(document), **_lettered(document)}


def openbookqa_row(document: Row) -> Row:
    """A document of OLMo's OpenBookQA, likewise."""
    return {"id": document["id"], "question_stem": _question(document), **_lettered(document)}


def _question(document: Row) -> str:
    """The question of 'Question: ...' and 'Answer:'."""
    start, end = "Question: ", "\nAnswer:"
    query: str = document["query"]
    if not (query.startswith(start) and query.endswith(end)):
        raise ValueError(f"no '{start}... Answer:' but {query[:40]!r}")
    return query[len(start) : -len(end)]


def _lettered(document: Row) -> Row:
    """Choices by letter; which letters a question had in the original does not enter any prompt."""
    labels = list(LETTERS[: len(document["choices"])])
    return {
        "choices": {"text": document["choices"], "label": labels},
        "answerKey": labels[document["gold"]],
    }


def foundry_copa_row(row: Row) -> Row:
    """LLM Foundry's COPA: the premise and what is asked, out of 'The man turned on the faucet, therefore'."""
    premise, _, connector = row["query"].rpartition(", ")
    asked = {"because": "cause", "therefore": "effect"}[connector]
    first, second = row["choices"]
    return {
        "premise": f"{premise}.",
        "choice1": first,
        "choice2": second,
        "question": asked,
        "label": row["gold"],
    }


def foundry_openbookqa_row(row: Row) -> Row:
    """LLM Foundry's OpenBookQA."""
    return {"question_stem": row["query"], **_lettered(row)}


def foundry_winogrande_row(row: Row) -> Row:
    """LLM Foundry's WinoGrande: the sentence with a gap where its two contexts part."""
    before, options = _parted(row)
    return {
        "sentence": f"{before}_ {row['continuation']}",
        "option1": options[0],
        "option2": options[1],
        "answer": str(row["gold"] + 1),
    }


def foundry_winograd_row(row: Row) -> Row:
    """LLM Foundry's Winograd schemas, likewise; its options are already spelt to fit the sentence."""
    before, options = _parted(row)
    return {
        "text": f"{before}_ {row['continuation']}",
        "pronoun": "_",
        "pronoun_loc": len(before),
        "options": options,
        "label": row["gold"],
    }


def _parted(row: Row) -> tuple[str, list[str]]:
    """What two contexts share, up to a whole word, and how each ends."""
    contexts: list[str] = row["context_options"]
    shared = os.path.commonprefix(contexts)  # noqa: RUF071  # of characters, and these are no paths
    shared = shared[: shared.rfind(" ") + 1]
    return shared, [context[len(shared) :] for context in contexts]
