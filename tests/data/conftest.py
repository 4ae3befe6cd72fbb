import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own for every test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RETBENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data."""
    folder = os.environ.get("RETBENCH_DATA")
    if not folder:
        pytest.skip("RETBENCH_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Writes texts by their relative path and gives their folder."""

    def write(texts: dict[str, str]) -> Path:
        root = tmp_path / "texts"
        for name, text in texts.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        return root

    return write
