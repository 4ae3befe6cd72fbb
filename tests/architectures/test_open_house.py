"""Nothing outside `mixers` and `architectures` asks for an architecture or a mixer by its name or type."""

import ast
from pathlib import Path

import retbench
from retbench.architectures.registry import architectures, mixers

PACKAGE = Path(retbench.__file__).parent
EXEMPT = {
    "mixers",
    "architectures",
    "papers",  # what the papers print, by the models that they print it of
    "checkpoints",  # what other projects call their models in their own configurations
}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in EXEMPT]
NAMES = {*architectures(), *mixers()} - {
    "attention",  # words that prose and other fields need too
    "linear",
    "gla",  # a training recipe has the name of the paper, too
    "transformers",  # the package whose models the mixer of this name runs
}
TYPES = {
    *(kind.__name__ for kind in mixers().values()),
    *(each.spec.__name__ for each in architectures().values()),
}


def questions_in(source: str) -> list[str]:
    """Return each place of a module that names an architecture or mixer, or asks for its type."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in NAMES:
            found.append(f"line {node.lineno}: the literal {node.value!r}")
        elif isinstance(node, ast.Name) and node.id in TYPES:
            found.append(f"line {node.lineno}: {node.id}")
    return found


def test_the_scan_finds_what_it_is_for() -> None:
    asking = """
match x:
    case Retention():
        pass
if isinstance(spec, RetNetSpec) or a == 'transformer':
    pass
"""
    assert len(questions_in(asking)) == 3


def test_nothing_asks_for_an_architecture() -> None:
    assert len(FILES) > 200
    asked = {str(path.relative_to(PACKAGE)): questions_in(path.read_text(encoding="utf-8")) for path in FILES}
    assert {name: found for name, found in asked.items() if found} == {}
