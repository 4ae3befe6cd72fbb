"""The prose of the project keeps to the field's terms and to docstrings that say what a thing does."""

import ast
import re
from pathlib import Path

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
        "tests/**/*.py",
        "Makefile",
        "action.yml",
    )
    for path in ROOT.glob(pattern)
    if path != Path(__file__)  # it names the words to replace
)
MODULES = [path for path in TEXTS if path.suffix == ".py"]
REPLACED = {
    r"foretell\w*|foretold": "predict",
    r"outvoted": "averaged out",
    r"told apart|tells? \w+ apart": "significantly different",
    r"exact lane|lanes?\b": "machine-independent checks; kind of check",
    r"sittings?": "measurement session",
    r"visits?": "sample block",
    r"accept.soft|(hard|soft) facts?": "comparability keys, confounders",
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


def test_the_words_are_those_of_the_field() -> None:
    assert len(TEXTS) > 400
    patterns = {re.compile(rf"\b({words})\b", re.IGNORECASE): better for words, better in REPLACED.items()}
    found = [
        f"{path.relative_to(ROOT)}, line {number}: '{match[0]}' (write: {better})"
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for pattern, better in patterns.items()
        if (match := pattern.search(line))
    ]
    assert found == []


def docstrings(path: Path) -> list[str]:
    """Return the docstrings of a module, and its strings that stand alone, such as those below constants."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]
    return texts + [
        node.value.value
        for node in nodes
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def test_no_docstring_opens_with_a_noun_clause() -> None:
    assert len(MODULES) > 300
    found = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in MODULES
        for text in docstrings(path)
        if text.split(" ", 1)[0] in NOUN_CLAUSES
    ]
    assert found == []
