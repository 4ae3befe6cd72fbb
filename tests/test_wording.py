"""The prose of the project keeps to the field's terms and to docstrings that say what a thing does."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "experiments/*.toml",
        "suite/retbench/**/*.py",
        "suite/retbench/**/*.toml",
        "suite/retbench/**/*.j2",
        "benchmarks/**/*.py",
        "Makefile",
        "action.yml",
    )
    for path in ROOT.glob(pattern)
)
MODULES = [path for path in TEXTS if path.suffix == ".py"]
REPLACED = {
    r"foretell\w*|foretold": "predict",
    r"outvoted": "averaged out",
    r"told apart|tells? \w+ apart": "significantly different",
    r"exact lane|lanes?\b": "machine-independent checks; kind of check",
    r"sittings?": "measurement session",
    r"(hard|soft) facts?": "comparability keys, confounders",
    r"beside other work": "while other processes were running",
    r"in two bytes": "in 16-bit dtypes",
    r"weigh(s|ed|ing)?": "measure",
    r"what_runs|what ran|forget_what_ran": "executed backend",
    r"overtaking": "crossover",
    r"offer_as_oom_victim": "raise_oom_score",
    r"none in range": "the curves do not cross between ... and ...",
    r"duels?|exams?|ledgers of": "comparison, evaluation inputs",
    r"seen, and missing": "measured; still needed",
    r"speed without quality": "Speed matters only at equal quality",
}
"""Words of a private dialect that have no other use here, and what the field calls the thing."""
NOUN_CLAUSES = {"What", "That", "Whether", "Of", "From", "To", "How", "Where", "As"}
"""First words that say what a thing is about, where the verb says what it does."""


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_those_of_the_field(path: Path) -> None:
    found = [
        f"line {number}: '{match[0]}' (write: {better})"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for words, better in REPLACED.items()
        if (match := re.search(rf"\b({words})\b", line, re.IGNORECASE))
    ]
    assert found == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_opens_with_a_noun_clause(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    texts += [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    assert [text for text in texts if text.split(" ", 1)[0] in NOUN_CLAUSES] == []
