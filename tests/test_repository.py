"""Files around the package say what the package is: citation, containers, hooks before a commit."""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import retbench

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
INSTRUCTIONS = {"FROM", "WORKDIR", "RUN", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}


def instructions_of(name: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, each with its arguments in one line."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined]


def copied_sources(name: str) -> list[str]:
    """Return what a Dockerfile copies from the checkout."""
    copies = [shlex.split(rest) for kind, rest in instructions_of(name) if kind == "COPY"]
    return [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]


def test_the_citation_has_the_version_and_the_license_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == retbench.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["authors"] == PROJECT["project"]["authors"]


def test_the_lock_is_of_these_dependencies_and_names_public_addresses_only() -> None:
    text = (ROOT / "uv.lock").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://([^/\"]+)", text)) == {"pypi.org", "files.pythonhosted.org"}
    (own,) = [one for one in tomllib.loads(text)["package"] if one["name"] == "retbench"]
    locked = {
        (Requirement(one["name"] + one.get("specifier", "")), one.get("marker", ""))
        for one in own["metadata"]["requires-dist"]
        if "extra ==" not in one.get("marker", "")
    }
    assert locked == {(Requirement(one), "") for one in PROJECT["project"]["dependencies"]}, "run `uv lock`"
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(own["metadata"]["provides-extras"]) == extras.keys()
    for extra, needed in extras.items():
        found = {
            str(Requirement(one["name"] + one.get("specifier", "")))
            for one in own["metadata"]["requires-dist"]
            if re.search(rf"extra == '{extra}'", one.get("marker", ""))
        }
        assert found == {str(Requirement(one.split(";")[0])) for one in needed}, "run `uv lock`"


def test_the_changelog_has_a_section_for_what_is_not_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", text, flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert len(set(headings)) == len(headings)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_has_known_instructions_and_does_not_run_as_root(name: str) -> None:
    found = instructions_of(name)
    assert {kind for kind, _ in found} <= INSTRUCTIONS
    assert found[0][0] == "FROM"
    bases = [rest.split()[0] for kind, rest in found if kind == "FROM"]
    assert all(re.search(r":\d", base) for base in bases), "a base without a version"
    assert [rest for kind, rest in found if kind == "USER"][-1] != "root"
    assert ("ENTRYPOINT", '["retbench"]') in found
    for kind, rest in found:
        if kind == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
            assert "apt-get install" not in rest or "rm -rf /var/lib/apt/lists" in rest


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_copies_what_a_wheel_is_built_from(name: str) -> None:
    sources = copied_sources(name)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    project, wheel = PROJECT["project"], PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = ["pyproject.toml", project["readme"], *project["license-files"]]
    needed += [*wheel["packages"], *wheel["force-include"]]
    assert [
        one for one in needed if not any(one == source or one.startswith(f"{source}/") for source in sources)
    ] == []
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert [source for source in sources if f"!{source}" not in allowed] == []


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_installs_extras_that_exist(name: str) -> None:
    for extras in re.findall(r"\[([a-z,]+)\]\"", (ROOT / name).read_text(encoding="utf-8")):
        assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    python = next(rest for kind, rest in instructions_of(name) if kind == "FROM").split()[0]
    version = tuple(map(int, re.findall(r"(\d+)\.(\d+)", python)[0]))
    assert version >= tuple(map(int, re.findall(r"(\d+)\.(\d+)", PROJECT["project"]["requires-python"])[0]))


@pytest.mark.slow
def test_the_cpu_image_is_built_and_runs() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        pytest.skip("needs a running docker")
    subprocess.run([docker, "build", "--tag", "retbench-test", "."], cwd=ROOT, check=True)
    done = subprocess.run(
        [docker, "run", "--rm", "retbench-test", "--version"], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == retbench.__version__


def test_the_hooks_before_a_commit_run_what_make_runs() -> None:
    hooks = [
        hook
        for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))[
            "repos"
        ]
        for hook in repository["hooks"]
    ]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    for hook in hooks:
        assert hook["entry"].replace(" --force-exclude", "") in makefile
        assert hook["language"] == "system"
