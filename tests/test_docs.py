"""README, CONTRIBUTING and docs agree with the code: commands, options, targets, files and names exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retbench import errors
from retbench.cli import COMMANDS, EXIT_CODES, app, load_command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def parse(words: str) -> None:
    """Fail unless `retbench ...` is a command and has the options given."""
    name, *arguments = shlex.split(words, comments=True)[1:]
    assert name in COMMANDS, words
    command = load_command(name)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, words
        command = command.commands[name]
    if arguments and "--help" not in arguments:  # a sentence may name a command alone
        command.make_context(name, arguments)


def example_of(name: str) -> str:
    """Return the example at the end of a command's help."""
    text = CliRunner().invoke(app, [name, "--help"], terminal_width=200).stdout
    last = text.strip().splitlines()[-1].strip()
    assert last.startswith("Example: "), f"the help of {name} ends with: {last}"
    return last.removeprefix("Example: ")


def commands_in(text: str) -> list[str]:
    """Return every `retbench ...` in code: lines of code blocks, and code within a sentence."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for line in [*lines, *inline] if line.startswith("retbench ")]


def targets_in(text: str) -> set[str]:
    """Return every target of `make ...` in code."""
    lines = re.findall(r"^make ([a-z -]+)", text, flags=re.MULTILINE)
    inline = re.findall(r"`make ([a-z -]+)`", text)
    return {word for line in [*lines, *inline] for word in line.split()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert f"retbench {name}" in README + CONTRIBUTING


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_ends_with_an_example(name: str) -> None:
    example = example_of(name)
    assert example.startswith(f"retbench {name}")
    parse(example)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    command = load_command(name)
    for one in (command, *getattr(command, "commands", {}).values()):
        assert [parameter.name for parameter in one.params if not parameter.help] == []


@pytest.mark.parametrize(
    "words", sorted({command for text in TEXTS.values() for command in commands_in(text)})
)
def test_every_command_in_the_documents_exists(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    parse(words)


def test_documents_hold_commands() -> None:
    assert len(commands_in(README)) >= 10


def test_every_make_target_in_the_documents_exists() -> None:
    defined = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"report", "test"} <= targets_in(README)
    for text in (*TEXTS.values(), ci):
        assert targets_in(text) <= defined
    (phony,) = re.findall(r"^\.PHONY: (.*)", MAKEFILE, flags=re.MULTILINE)
    assert set(phony.split()) == defined


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in README
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make test"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_every_path_exists(page: Path) -> None:
    text = TEXTS[page]
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:suite|experiments|tests|benchmarks|\.ci)/[^`*]*)`", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_name_in_contributing_stands_in_the_file_named_with_it() -> None:
    """Each `name` is found in one of the files that its paragraph names."""
    known = {*COMMANDS, "smoke", "cpu", "paper", "assert", "absent"}
    for paragraph in CONTRIBUTING.split("\n\n"):
        words = re.findall(r"`([A-Za-z_]+)`", paragraph)
        files = [ROOT / path for path in re.findall(r"`(suite/[^`]+\.py)`", paragraph)]
        source = "\n".join(path.read_text(encoding="utf-8") for path in files)
        for word in words:
            assert not files or word in known or word in source, f"{word}: not in {files}"


def test_exit_codes_are_the_same_everywhere() -> None:
    (sentence,) = re.findall(r"^Exit codes: .*?\n\n", README, flags=re.MULTILINE | re.DOTALL)
    codes = ["0", "1", "2", "3", "4", "130"]
    assert re.findall(r"(\d+) [a-z]", sentence) == codes
    assert re.findall(r"(\d+) [a-z]", EXIT_CODES) == codes
    raised = {
        str(value.exit_code)
        for value in vars(errors).values()
        if isinstance(value, type) and hasattr(value, "exit_code")
    }
    assert raised <= set(codes)
