"""Checkpoints are found at a path, in the data folder and on the hub, whose library is replaced."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from retbench.checkpoints.reading import PINNED_REVISIONS, locate, read_checkpoint
from retbench.errors import ConfigError, UnsupportedError
from tests.checkpoints.stored import write_fla_retnet

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandInHub:
    """Keeps one repository in a folder named after a commit, as the hub's cache does."""

    def __init__(self, folder):
        self.path = folder / "snapshots" / COMMIT
        self.asked = []

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns=None):
        self.asked.append((repo_id, revision))
        assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in allow_patterns)
        return str(self.path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.delenv("RETBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    hub = StandInHub(tmp_path)
    write_fla_retnet(hub.path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_public_checkpoint_is_read_at_its_pinned_commit(hub):
    info = read_checkpoint("fla-hub/retnet-1.3B-100B")
    assert hub.asked == [("fla-hub/retnet-1.3B-100B", "7fddefc4d5e196a8d1f076bb7612d54321b3effe")]
    assert (info.source, info.revision, info.path) == ("fla-hub/retnet-1.3B-100B", COMMIT, hub.path)


@pytest.mark.parametrize("name", ["fla-hub/retnet-1.3B-100B", "hub:fla-hub/retnet-1.3B-100B"])
def test_another_revision_can_be_asked_for(hub, name):
    read_checkpoint(name, revision="v2")
    read_checkpoint(f"{name}@v3")
    assert [revision for _, revision in hub.asked] == ["v2", "v3"]


def test_what_main_was_is_recorded(hub):
    info = read_checkpoint("somebody/some-model")
    assert hub.asked == [("somebody/some-model", None)]
    assert info.revision == COMMIT


def test_a_path_comes_before_the_hub(hub, tmp_path):
    write_fla_retnet(tmp_path / "fla-hub" / "retnet-1.3B-100B")
    info = read_checkpoint("fla-hub/retnet-1.3B-100B")
    assert info.path == Path("fla-hub/retnet-1.3B-100B")
    assert info.revision is None
    assert hub.asked == []


def test_a_name_below_the_data_folder(hub, tmp_path):
    write_fla_retnet(tmp_path / "data" / "small")
    assert read_checkpoint("small", data_dir=tmp_path / "data").path == tmp_path / "data" / "small"


def test_a_local_checkpoint_has_no_revision(hub):
    with pytest.raises(ConfigError, match="has no revisions"):
        locate(str(hub.path), revision="v2")


def test_a_name_of_nothing_is_refused_without_asking_the_hub(hub):
    with pytest.raises(ConfigError, match="unknown checkpoint 'nothing'"):
        read_checkpoint("nothing")
    with pytest.raises(ConfigError, match="unknown checkpoint"):
        read_checkpoint("./a/b")
    assert hub.asked == []


def test_without_a_network_the_message_says_what_to_do(hub, monkeypatch):
    def fail(*_args, **_options):
        raise huggingface_hub.errors.LocalEntryNotFoundError(
            "Cannot find the snapshot folder.\nCheck your connection."
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UnsupportedError) as caught:
        read_checkpoint("fla-hub/transformer-2.7B-100B")
    assert (
        "hf download fla-hub/transformer-2.7B-100B --revision e29b06c913e05827bfb534844267c8d9f673feda"
        in str(caught.value)
    )
    assert "--local-dir FOLDER" in str(caught.value)


def test_pinned_revisions_are_whole_commits():
    assert set(PINNED_REVISIONS) == {
        "fla-hub/retnet-1.3B-100B",
        "fla-hub/transformer-1.3B-100B",
        "fla-hub/transformer-2.7B-100B",
    }
    assert all(len(commit) == 40 and int(commit, 16) for commit in PINNED_REVISIONS.values())


def test_a_configuration_is_read_without_torch(hub):
    code = (
        "import sys; from retbench.checkpoints.reading import read_checkpoint; "
        "read_checkpoint(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(hub.path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "False\n"


def test_the_folder_of_a_training_run_stands_for_its_checkpoint(tmp_path):
    write_fla_retnet(tmp_path / "retnet-300k-seed0/final")
    info = read_checkpoint(str(tmp_path / "retnet-300k-seed0"))
    assert info.path == tmp_path / "retnet-300k-seed0/final"
    assert info.weights_dtype is not None


def test_a_format_that_is_not_the_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba2"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not of format 'llama', but 'mamba2'\. Leave --format out"):
        read_checkpoint(str(tmp_path), format="llama")
