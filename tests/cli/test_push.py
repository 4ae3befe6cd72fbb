"""`retbench push` against a local stand-in of the hub's API, which keeps what it is sent."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from report.synthetic_records import CPU, Maker
from retbench.cli import app
from retbench.records.store import append_record


class Hub(ThreadingHTTPServer):
    """A hub that has no datasets yet.

    Attributes:
        calls: Method and path of every request.
        files: Contents of the files of the only dataset.
        made: Body of the request that made it.
        status: Status of its answers; others than 200 refuse.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.calls: list[str] = []
        self.files: dict[str, bytes] = {}
        self.made: dict[str, object] = {}
        self.status = 200

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Requests(BaseHTTPRequestHandler):
    """The requests of one upload, as the hub's documentation describes them."""

    server: Hub

    def do_POST(self) -> None:
        hub = self.server
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        hub.calls.append(self.path)
        if hub.status != 200:
            self.answer({"error": "not yours"})
        elif self.path == "/api/repos/create":
            hub.made = json.loads(body)
            self.answer({"url": f"{hub.endpoint}/datasets/me/mine", "id": "me/mine", "name": "me/mine"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/datasets/me/mine/preupload/main":
            asked = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked
                    ]
                }
            )
        elif self.path == "/api/datasets/me/mine/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{hub.endpoint}/datasets/me/mine/commit/{'a' * 40}"
            self.answer({"success": True, "commitOid": "a" * 40, "commitUrl": url, "hookOutput": ""})
        else:
            self.send_error(404)

    def answer(self, content: object) -> None:
        text = json.dumps(content).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for record in Maker(CPU).latency((1024,)):
        append_record(folder / "machine" / "latency" / "run.jsonl", record)
    (folder / "notes.txt").write_text("mine alone", encoding="utf-8")
    return folder


def push(hub: Hub, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: the address of the hub is read at its start."""
    variables = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "retbench", "push", *words],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_records_and_a_card_become_a_dataset(hub: Hub, results: Path) -> None:
    done = push(hub, results, "--hub", "me/mine", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.endpoint}/datasets/me/mine/commit/{'a' * 40}\n"
    name = "machine/latency/run.jsonl"
    assert hub.files.keys() == {name, "README.md"}
    assert hub.files[name] == (results / name).read_bytes()
    assert hub.made["type"] == "dataset"
    assert hub.made.get("private") is True or hub.made.get("visibility") == "private"
    _, head, text = hub.files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(head)["configs"][0]["data_files"] == "**/*.jsonl"
    assert "| latency |" in text
    assert 'snapshot_download("me/mine", repo_type="dataset")' in text


def test_a_dry_run_lists_the_files_and_sends_nothing(hub: Hub, results: Path) -> None:
    done = push(hub, results, "--hub", "me/mine", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "machine/latency/run.jsonl\t" in done.stdout
    assert "notes.txt" not in done.stdout
    assert "# mine" in done.stdout
    assert hub.calls == []


def test_a_hub_that_refuses_is_an_error_that_says_so(hub: Hub, results: Path) -> None:
    hub.status = 403
    done = push(hub, results, "--hub", "me/mine")
    assert done.returncode == 2
    assert "the hub does not let you do this (status 403)" in done.stderr
    assert hub.files == {}


def test_a_hub_out_of_reach_is_an_error_with_advice_for_sending(hub: Hub, results: Path) -> None:
    hub.status = 400
    done = push(hub, results, "--hub", "me/mine")
    assert done.returncode == 3
    assert "the hub cannot be reached (" in done.stderr
    assert done.stderr.endswith("Check the network, then push again.\n")


@pytest.mark.parametrize(
    ("name", "message"), [("mine", "not the name of a dataset"), ("", "it is empty"), ("a/b/c", "OWNER/NAME")]
)
def test_other_names_are_refused(results: Path, name: str, message: str) -> None:
    for more in ([], ["--dry-run"]):
        done = CliRunner().invoke(app, ["push", str(results), "--hub", name, *more])
        assert (done.exit_code, message in done.stderr, done.stdout) == (2, True, ""), done.stderr


def test_a_folder_without_records_and_a_file_are_refused(tmp_path: Path, results: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(app, ["push", str(tmp_path / "empty"), "--hub", "me/mine"])
    assert (done.exit_code, "holds no record" in done.stderr) == (2, True), done.stderr
    file = results / "machine" / "latency" / "run.jsonl"
    done = CliRunner().invoke(app, ["push", str(file), "--hub", "me/mine", "--dry-run"])
    assert (done.exit_code, "is a file. Give the folder" in done.stderr) == (2, True), done.stderr
