from pathlib import Path

import pytest

from retbench.data.data_folder import data_folder, find
from retbench.errors import ConfigError
from retbench.files import cache_dir


def test_the_cache_is_that_of_the_environment_or_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("RETBENCH_CACHE", "~/elsewhere")
    assert cache_dir() == Path("/home/someone/elsewhere")
    monkeypatch.delenv("RETBENCH_CACHE")
    assert cache_dir() == Path("/home/someone/.cache/retbench")


def test_the_option_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.setenv("RETBENCH_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    assert data_folder(tmp_path / "a") == tmp_path / "a"
    monkeypatch.setenv("RETBENCH_DATA", "")
    assert data_folder() is None


def test_a_path_goes_before_a_name_below_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in ("here", "data"):
        (tmp_path / folder / "books").mkdir(parents=True)
    (tmp_path / "data" / "long_name").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data = tmp_path / "data"
    assert find("books", kind="corpus", data_dir=data) == Path("books")
    assert find("long_name", kind="corpus", data_dir=data) == data / "long_name"
    assert find("short", kind="corpus", data_dir=data, below="long_name") == data / "long_name"
    with pytest.raises(ConfigError, match=f"unknown model 'long_nam'.*nor is it below {data}.*'long_name'"):
        find("long_nam", kind="model", data_dir=data)
    with pytest.raises(ConfigError, match="there is no such path"):
        find("x" * 5000, kind="corpus", data_dir=data)
