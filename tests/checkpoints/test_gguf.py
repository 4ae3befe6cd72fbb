"""GGUF files: written as folders, and refused where they cannot be read."""

import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from retbench.checkpoints import gguf
from retbench.checkpoints.gguf import export_gguf
from retbench.checkpoints.reading import read_checkpoint
from retbench.cli import app
from retbench.errors import CheckpointError, ConfigError, RetbenchError, UnsupportedError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with the name and the first bytes of a GGUF file only."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\3\0\0\0")
    return path


def test_a_gguf_file_is_refused_with_the_command_that_writes_a_folder(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"GGUF file\. .*retbench export .*model\.gguf FOLDER"):
        read_checkpoint(str(file), format="hf")


def test_a_folder_with_files_is_not_overwritten(file: Path) -> None:
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_gguf(file, file.parent)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.gguf: there is no such file"):
        export_gguf(tmp_path / "absent.gguf", tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--format", "llama"), "Leave --format out"), (("--revision", "main"), "has no revisions")],
)
def test_what_a_file_does_not_have_cannot_be_chosen(
    file: Path, option: tuple[str, str], message: str
) -> None:
    done = CliRunner().invoke(app, ["export", str(file), str(file.parent / "out"), *option])
    assert done.exit_code == 2
    assert message in done.output


def test_the_extra_installs_what_a_file_is_read_with() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    extra = {Requirement(one).name for one in project["project"]["optional-dependencies"]["hf"]}
    assert set(gguf.NEEDED) <= extra


@pytest.mark.parametrize("name", gguf.NEEDED)
def test_a_package_that_is_not_installed_is_named(
    file: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda wanted: None if wanted == name else object())
    with pytest.raises(UnsupportedError, match=rf"not installed: {name}\. .*retbench\[hf\]"):
        export_gguf(file, file.parent / "out")


@pytest.mark.peers
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_a_damaged_file_leaves_nothing(file: Path) -> None:
    with pytest.raises(RetbenchError, match=r"model\.gguf"):  # unsupported where a package is not installed
        export_gguf(file, file.parent / "out")
    assert not (file.parent / "out").exists()
