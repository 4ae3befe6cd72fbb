"""README, CONTRIBUTING and docs agree with the code: commands, options, targets, files and names exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retbench import errors
from retbench.cli import COMMANDS, EXIT_CODES, app, load_command
from retbench.regress.items import is_compared
from retbench.workloads.workload import WORKLOADS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
RESULTS = ROOT / "results" / "published" / "amd-epyc-family-25-model-17-stepping-1-2-cores" / "memory"
"""Few records, so that commands that read them take seconds."""
FAQ = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
NEEDS_EXTRA = re.compile(r"pip install .*'retbench\[(flash|hf|kernels|mamba|recall|slurm|trackio|wandb)\]'")
"""Messages of commands that need an extra which may not be installed where the tests run."""
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


def as_tried(words: str, folder: Path) -> list[str]:
    """Return the words of a command as a test runs it: estimated where it measures, explained where it takes long."""
    name, *arguments = shlex.split(words, comments=True)[1:]
    if name in ("check", "predict") and "--paper" not in arguments:
        return [name, "--help"]
    added = {
        "run": ["--dry-run"],
        "train": ["--dry-run"],
        "report": ["--results", str(RESULTS), "--out", str(folder / "out")],
        "claims": ["--results", str(RESULTS)],
    }
    return [name, *arguments, *added.get(name, [])]


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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
        takes_values = [parameter for parameter in one.params if not getattr(parameter, "is_flag", False)]
        assert [parameter.name for parameter in takes_values if not parameter.metavar] == [], (
            "no name of the value"
        )


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


@pytest.mark.parametrize(
    "words",
    [
        # An estimate measures the machine, which takes seconds and waits for other runs.
        pytest.param(words, marks=pytest.mark.slow if words.split()[1] in ("run", "train") else ())
        for words in sorted({line.partition("#")[0].strip() for line in commands_in(README)})
        if not re.search(r" [A-Z]+\b", words)  # a placeholder
    ],
)
def test_every_command_of_the_readme_runs(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, as_tried(words, tmp_path))
    if done.exit_code == 3 and (
        "the hub cannot be reached" in done.output or NEEDS_EXTRA.search(done.output)
    ):
        pytest.skip(done.output)
    assert done.exit_code == 0, done.output
    assert done.stdout


@pytest.mark.parametrize("target", sorted(targets_in(README)))
def test_every_make_target_of_the_readme_has_commands(target: str) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    done = subprocess.run(
        [make, "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ".venv/bin/" in done.stdout


def test_the_readme_begins_with_the_answer_and_the_first_commands() -> None:
    lines = README.splitlines()
    assert any(line.startswith("git clone ") for line in lines[:20])
    assert any(line.startswith("make report") for line in lines[:20])
    assert sum(line.startswith("- **") for line in lines[:20]) == 4
    assert README.index("(docs/page.png)") < README.index("## ")


@pytest.mark.parametrize(
    "term",
    [
        "equivalence check",
        "regression check",
        "form",
        "cell",
        "round",
        "workspace",
        "`strided`",
        "`whole`",
        "measurement session",
    ],
)
def test_the_glossary_explains_the_terms(term: str) -> None:
    glossary = FAQ.partition("## Glossary")[2]
    assert re.search(rf"^\| {re.escape(term)}[^|]* \| .{{20,}} \|$", glossary, flags=re.MULTILINE)


def test_the_readme_links_every_question_that_new_users_have() -> None:
    linked = re.findall(r"\(docs/faq\.md#([^)]+)\)", README)
    assert len(linked) >= 5
    assert {"glossary", "can-i-measure-my-own-model"} <= set(linked) <= anchors_of(FAQ)


def test_the_page_on_measuring_has_a_row_of_every_workload() -> None:
    table = TEXTS[ROOT / "docs" / "measuring.md"].partition("| :-- | :-- | :-- |\n")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| (\w+) \|", table, re.MULTILINE)) == sorted(WORKLOADS)


def test_the_page_on_checks_names_the_workloads_that_are_compared() -> None:
    (sentence,) = re.findall(r"two existing record sets: ([^.]*)\.", TEXTS[ROOT / "docs" / "checks.md"])
    named = {name for name in WORKLOADS if re.search(rf"\b{name}\b", sentence)}
    assert named == set(filter(is_compared, WORKLOADS))


def test_every_make_target_in_the_documents_exists() -> None:
    defined = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"report", "test"} <= targets_in(README)
    for text in (*TEXTS.values(), ci):
        assert targets_in(text) <= defined
    (phony,) = re.findall(r"^\.PHONY: (.*)", MAKEFILE, flags=re.MULTILINE)
    assert set(phony.split()) == defined


def test_every_make_target_is_documented() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)", MAKEFILE, flags=re.MULTILINE)
    assert set(phony.split()) == targets_in(README) | targets_in(CONTRIBUTING)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in README
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make test"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_every_path_exists(page: Path) -> None:
    text = TEXTS[page]
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    paths = re.findall(r"`((?:suite|experiments|tests|benchmarks|\.ci)/[^`*]*)`", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_every_anchor_is_a_heading(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", TEXTS[page]):
        target = (page.parent / link).resolve() if link else page
        assert anchor in anchors_of(target.read_text(encoding="utf-8")), f"{link}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_results_are_written_by_commands_only(page: Path) -> None:
    """Measured values and comparisons stand between the comments of generated parts, where tests compare them."""
    prose = re.sub(r"<!-- begin .*?<!-- end [a-z]+ -->", "", TEXTS[page], flags=re.DOTALL)
    unit = r"×|(?:ms|tokens/s|[KM]iB|times (?:faster|slower|as long))\b|% (?:faster|slower|less|fewer)\b"
    assert re.findall(rf".*\d ?(?:{unit}).*", prose) == []


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
