"""The command line as a user meets it: real processes, real files, exit codes, and what goes to which stream."""

import csv
import errno
import io
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import psutil
import pytest
from jsonschema import Draft202012Validator

import retbench
from retbench.cli import COMMANDS, load_command
from retbench.records.record import Record
from retbench.records.store import append_record, read_records
from retbench.running.locks import LOCK_DIR_VARIABLE, timing_lock
from tests.cli.conftest import invoke
from tests.conftest import KNOWN_CEILINGS

TINY = ("--profile", "smoke", "--device", "cpu")


def retbench_process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the program in a folder of its own; a traceback is never an answer."""
    done = subprocess.run(
        [sys.executable, "-m", "retbench", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
        timeout=300,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def measured(given_products: None, given_ceilings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the smallest possible experiment was run once."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "tiny.toml").write_text(
        'title = "Tiny"\nsource = "none"\nexpect = "It runs."\n'
        '[models.retnet]\narchitecture = "retnet"\n[models.transformer]\narchitecture = "transformer"\n'
        '[profiles.smoke]\nsize = "100k"\nrounds = 2\nwarmup_s = 0.0\nmin_steps = 2\n'
        "[profiles.smoke.workloads.decode]\ncontext_len = [64]\n",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, stdout, stderr = invoke("run", "tiny.toml", *TINY)
    (folder / "stdout").write_text(stdout, encoding="utf-8")
    (folder / "stderr").write_text(stderr, encoding="utf-8")
    assert code == 0, stderr
    return folder


def test_run_prints_results_on_stdout_and_progress_on_stderr(measured: Path) -> None:
    stdout = (measured / "stdout").read_text(encoding="utf-8")
    stderr = (measured / "stderr").read_text(encoding="utf-8")
    assert stdout.startswith("### decode\n")
    assert "| retnet | 1 | 64 |" in stdout
    assert "| transformer | 1 | 64 |" in stdout
    assert "4/4 round 2" in stderr
    assert "finished: 4 ok" in stderr
    assert "\x1b" not in stderr, "control characters belong on a terminal only"


def test_run_appends_a_record_for_each_cell_and_round(measured: Path) -> None:
    records, problems = read_records(measured / "results")
    assert not problems
    assert sorted((r.model.name, r.round, r.status) for r in records) == [
        ("retnet", 0, "ok"),
        ("retnet", 1, "ok"),
        ("transformer", 0, "ok"),
        ("transformer", 1, "ok"),
    ]


def test_its_records_fit_the_schema(measured: Path) -> None:
    schema = json.loads(
        (resources.files("retbench") / "records" / "record.schema.json").read_text(encoding="utf-8")
    )
    validator = Draft202012Validator(schema)
    (path,) = (measured / "results").rglob("*.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    for line in lines:
        validator.validate(json.loads(line))


def test_the_same_command_again_measures_nothing(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(read_records(measured / "results")[0])
    monkeypatch.chdir(measured)
    code, stdout, _ = invoke("run", "tiny.toml", *TINY, "--json")
    assert code == 0
    answer = json.loads(stdout)
    assert answer["counts"] == {}
    assert answer["skipped"] == 4
    assert answer["records"] is None
    assert len(read_records(measured / "results")[0]) == before


@pytest.mark.slow
def test_each_command_shows_all_its_models_whatever_they_were_run_beside(
    measured: Path, tmp_path: Path
) -> None:
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    beside = retbench_process(
        "run", "tiny.toml", *TINY, "--set=models.retnet.variant=torchscale", cwd=tmp_path
    )
    # The Transformer of the last round, which an interruption may have left alone, is measured beside the new model.
    assert "3 measurements to take; 1 is on disk already" in beside.stderr
    again = retbench_process("run", "tiny.toml", *TINY, cwd=tmp_path)
    assert "0 measurements to take; 4 are on disk already" in again.stderr
    for done in (beside, again):
        assert done.returncode == 0
        assert "ratio to Transformer" in done.stdout
        assert "| retnet | 1 | 64 |" in done.stdout
        assert "| transformer | 1 | 64 |" in done.stdout
        assert "left out: 1 record was measured again" in done.stderr


def test_table_prints_what_run_printed(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(measured)
    code, stdout, _ = invoke("table", "tiny")
    assert code == 0
    assert stdout == (measured / "stdout").read_text(encoding="utf-8")


def test_a_table_of_what_was_not_measured_says_how_to_measure_it(measured: Path) -> None:
    results = measured / "results"
    code, _, stderr = invoke("table", "memory", "--results", str(results))
    assert code == 2
    assert f"{results}: holds no record of 'memory'. Measure it first: `retbench run memory`." in stderr
    code, _, stderr = invoke("table", "tny", "--results", str(results))
    assert code == 2
    assert "Did you mean 'tiny'?" in stderr


@pytest.mark.parametrize("form", ["csv", "json", "latex"])
def test_table_has_other_formats(measured: Path, form: str) -> None:
    code, stdout, _ = invoke("table", "tiny", "--format", form, "--results", str(measured / "results"))
    assert code == 0
    if form == "json":
        assert stdout == invoke("table", "tiny", "--json", "--results", str(measured / "results"))[1]
        rows = json.loads(stdout)
        assert {row["model"] for row in rows} == {"retnet", "transformer"}
        assert all(row["tpot_s"] > 0 for row in rows)
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(stdout)))
        assert {row["model"] for row in rows} == {"retnet", "transformer"}
        assert all(float(row["tpot_s"]) > 0 for row in rows)
    else:
        assert r"\begin{tabular}" in stdout
        assert "transformer" in stdout


@pytest.mark.usefixtures("_without_pictures")
def test_report_understands_a_run_and_ends_with_the_answer(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(measured)
    code, stdout, _ = invoke("report")
    assert code == 0
    lines = stdout.splitlines()
    assert len(lines) <= 12
    assert lines[0] == "RetNet compared with the Transformer."
    assert [line for line in lines if line.startswith("Decode: ") and " at 64" in line]
    assert lines[-1] == "Open reports/index.html"
    page = (measured / "reports" / "index.html").read_text(encoding="utf-8")
    assert 'aria-label="Decode latency.' in page
    assert '<td class="differs">' not in (measured / "reports" / "evidence.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("_without_pictures")
def test_report_names_lines_that_it_cannot_read(measured: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    shutil.copytree(measured / "results", root)
    (one, *_) = sorted(root.rglob("*.jsonl"))
    one.write_text("no JSON\n" + one.read_text(encoding="utf-8"), encoding="utf-8")
    code, _, stderr = invoke("report", "--results", str(root), "--out", str(tmp_path / "out"))
    assert code == 0
    assert str(one) in stderr


def test_dry_run_shows_every_cell_and_measures_nothing(
    tmp_path: Path, tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With given ceilings: `tests/running/test_estimates.py` has them measured."""
    monkeypatch.setattr("retbench.running.estimates._measure_ceilings", lambda plan: (KNOWN_CEILINGS, {}))
    monkeypatch.chdir(tmp_path)
    code, stdout, _ = invoke("run", str(tiny_experiment), *TINY, "--dry-run", "--json")
    assert code == 0
    answer = json.loads(stdout)
    assert [(c["model"], c["context_len"]) for c in answer["cells"]] == [
        (model, length) for model in ("retnet", "transformer") for length in (64, 128)
    ]
    assert all(c["seconds"] > 0 and c["memory_bytes"] > 0 for c in answer["cells"])
    assert (answer["num_measurements"], answer["num_on_disk"]) == (4 * answer["rounds"], 0)
    assert not (tmp_path / "results").exists()


@pytest.fixture
def checked(measured: Path, tmp_path: Path, one_model: Path) -> Path:
    """A folder of results in which the RetNet of `one_model` was checked: a run of its memory has one worker."""
    for record in read_records(measured / "results")[0]:
        quiet = record.environment | {
            "load_average": [0.0, 0.0, 0.0]
        }  # else what it found would not hold here
        path = tmp_path / "results" / record.environment["machine"] / "another" / "records.jsonl"
        append_record(path, record.model_copy(update={"environment": quiet}))
    return tmp_path / "results"


def memory_records(results: Path) -> list[Record]:
    records, problems = read_records(results)
    assert not problems
    return [record for record in records if record.workload == "memory"]


MEMORY = ("--set", "workloads={memory={context_len=[64, 128]}}")
"""A workload that needs no ceilings and no states."""


def test_an_interrupted_run_keeps_what_it_measured_and_ends_with_130(
    tmp_path: Path, one_model: Path, checked: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "retbench", "run", str(one_model), *TINY, *MEMORY, "--set", "rounds=50"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    before, deadline = set(checked.rglob("*.jsonl")), time.monotonic() + 120
    while not any(path.stat().st_size for path in set(checked.rglob("*.jsonl")) - before):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "the same command continues from here" in stderr
    assert stdout == ""
    assert memory_records(checked)


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line of bash in which $RETBENCH is the program; the exit code is that of its first part."""
    script = f"{command}; exit ${{PIPESTATUS[0]}}"
    return subprocess.run(
        ["bash", "-c", script],
        cwd=cwd,
        env={**os.environ, "RETBENCH": f"{sys.executable} -m retbench"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_a_run_whose_output_is_cut_measures_everything(
    tmp_path: Path, one_model: Path, checked: Path
) -> None:
    words = shlex.join(["run", str(one_model), *TINY, *MEMORY])
    done = shell(f"$RETBENCH {words} 2>&1 | head -n 1", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert [record.status for record in memory_records(checked)] == ["ok", "ok"]
    for stderr in ("2>/dev/full", "2>&-"):
        again = shell(f"$RETBENCH {words} {stderr}", tmp_path)
        assert again.returncode == 0
        assert again.stdout.startswith("### memory")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("run", "latncy"), 2, "unknown experiment 'latncy'. Did you mean 'latency'?"),
        (("run", "absent.toml"), 2, "no experiment file at 'absent.toml'"),
        (("run", "latency", "--profile", "smok"), 2, "Did you mean 'smoke'?"),
        (("run", "latency", "--set", "round=3"), 2, "Did you mean 'rounds'?"),
        (("run", "latency", "--results", "here"), 2, "Did you mean --out?"),
        (("run", "latency", "--dtype", "float23"), 2, "Did you mean 'float32'?"),
        (("run", "latency", "--device", "tpu"), 2, "--device 'tpu'"),
        (("run", "latency", "--limit", "0"), 2, "--limit is 0"),
        (
            ("run", "latency", "--profile", "smoke", "--device", "cpu", "--dtype", "float16"),
            3,
            "float16 on a CPU",
        ),
        (("table", "latency"), 2, "no results at 'results'"),
        (("report",), 2, "no results at 'results'"),
        (("verify", "retnte"), 2, "unknown model 'retnte'. Did you mean 'retnet'?"),
        (("verify", "retnet", "--size", "25Mb"), 2, "Did you mean '25M'?"),
        (("verify", "retnet", "--dtype", "float23"), 2, "Did you mean 'float32'?"),
        (("verify", "retnet", "--size", "1m", "--backend", "sdpa"), 2, "unknown backend 'sdpa'"),
        (("verify", "transformer", "--size", "1m", "--backend", "flash", "--device", "cpu"), 3, "flash"),
        (("env", "--device", "tpu"), 2, "--device 'tpu'"),
    ],
)
def test_a_mistake_is_one_message_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    returned, stdout, stderr = invoke(*words)
    assert returned == code
    assert stdout == ""
    assert stderr.startswith("retbench: ")
    assert message in stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rnu",), "Did you mean 'run'?"),
        (("run",), "EXPERIMENT"),
        (("run", "latency", "--limit", "many"), "--limit"),
        (("run", "latency", "--devise", "cpu"), "--device"),
        (("list", "--sizes", "--models"), "give one of --sizes, --models, --tasks and --page"),
        (("list", "--sizes", "--data-dir", "."), "--data-dir is the place of the data of --tasks"),
        (
            ("train", "quality", "--profile", "smoke", "--dry-run", "--track", "mlflow"),
            "Known: trackio, wandb",
        ),
        ((), "Usage"),
    ],
)
def test_a_wrong_word_is_a_usage_error(words: tuple[str, ...], message: str) -> None:
    code, stdout, stderr = invoke(*words)
    assert code == 2
    assert message in stdout + stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_message() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "retbench", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("retbench: no space left")
    assert "Traceback" not in done.stderr


def test_a_command_that_has_loaded_triton_ends_without_a_word_of_it() -> None:
    pytest.importorskip("triton")
    program = "import triton, retbench.cli as cli; cli.app()"
    words = [sys.executable, "-c", program, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_that_is_closed_early_is_no_error() -> None:
    command = f"{sys.executable} -m retbench list --sizes | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("| size")
    assert done.stderr == ""


LONG = "n" * 300
"""Longer than a file system allows a name to be."""


@pytest.mark.parametrize(
    "words",
    [
        ("run", LONG),
        ("run", f"{LONG}.toml"),
        ("run", "latency", "--profile", LONG),
        ("run", "latency", *TINY, "--limit", "1", "--out", LONG),
        ("run", "latency", *TINY, "--limit", "1", "--data-dir", LONG),
        ("train", LONG),
        ("train", "quality", *TINY, "--out", LONG),
        ("table", "latency", "--results", LONG),
        ("report", "--results", LONG),
        ("claims", "--results", LONG),
        ("compare", LONG, LONG),
        ("compare", f"{LONG}.json", LONG),
        ("check", "--baseline", LONG),
        ("check", "--out", LONG),
        ("baseline", "save", LONG),
        ("baseline", "show", LONG),
        ("baseline", "accept", "exact", "--reason", "new", "--folder", LONG),
        ("predict", "retnet", "--ceilings", LONG),
        ("generate", LONG),
        ("generate", "no-such", "--tokenizer", LONG, "--data-dir", "."),
        ("verify", LONG),
    ],
)
def test_a_name_that_is_too_long_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = invoke(*words)
    assert (code, stdout) == (2, "")
    assert stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run", "latency", "--profile", ""),
        ("run", "latency", "--dtype", ""),
        ("run", "latency", "--device", ""),
        ("run", ""),
        ("train", "quality", "--profile", ""),
        ("check", "--against", ""),
        ("check", "--against", "HEAD", "--profile", ""),
        ("predict", "retnet", "--dtype", ""),
        ("predict", "retnet", "--ceilings", ""),
        ("generate", "x", "--tokenizer", ""),
        ("generate", "x", "--revision", ""),
        ("run", "latency", *TINY, "--out", ""),
        ("run", "latency", *TINY, "--data-dir", ""),
        ("train", "quality", *TINY, "--out", ""),
        ("jobs", "--out", ""),
        ("table", "latency", "--results", ""),
        ("claims", "--results", ""),
        ("report", "--results", ""),
        ("report", "--results", "RESULTS", "--out", ""),
        ("compare", "", "RESULTS"),
        ("compare", "RESULTS", ""),
        ("compare", "RESULTS", "RESULTS", "--out", ""),
        ("compare-commands", "true", "true", "--out", ""),
        ("check", "--out", ""),
        ("check", "--baseline", ""),
        ("export", "x", ""),
        ("export-results", "zeroshot", "", "--results", "RESULTS"),
        ("push", "", "--hub", "me/mine", "--dry-run"),
        ("baseline", "save", ""),
        ("baseline", "save", "RESULTS", "--folder", ""),
        ("baseline", "accept", "", "--reason", "new"),
        ("baseline", "show", ""),
        ("baseline", "show", "--folder", ""),
    ],
)
def test_an_empty_value_is_an_error(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """An empty path would be the current folder: what is there is not read, and nothing is written to it."""
    (tmp_path / "here").mkdir()
    shutil.copytree(measured / "results", tmp_path / "here" / "results")
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    code, stdout, stderr = invoke(
        *(str(tmp_path / "here/results") if word == "RESULTS" else word for word in words)
    )
    assert (code, stdout) == (2, "")
    assert stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("x" * 5000,),
        ("list", "x" * 5000),
        ("run", "latency", "--limit", "x" * 5000),
        ("run", "x" * 5000),
        ("table", "latency", "--results", "x" * 5000),
        ("verify", "retnet", "--dtype", "x" * 5000),
        ("predict", "retnet", "--device", "x" * 5000),
        ("check", "--against", "x" * 5000),
        ("run", "latency", "--limit", "\x1b[31m"),
    ],
)
def test_a_message_quotes_the_beginning_of_a_long_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = invoke(*words)
    assert (code, stdout) == (2, "")
    assert max(map(len, stderr.splitlines())) < 1000
    assert "\x1b" not in stderr


def test_a_file_that_cannot_be_read_is_one_message_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(code: int) -> tuple[int, str]:
        def read(*_: object) -> None:
            raise OSError(code, os.strerror(code), "some/file")

        monkeypatch.setattr("retbench.report.results.load_results", read)
        returned, _, stderr = invoke("table", "latency", "--results", str(tmp_path))
        return returned, stderr

    assert fail(errno.EACCES)[0] == fail(errno.EISDIR)[0] == 2
    code, stderr = fail(errno.EIO)
    assert code == 1
    assert stderr.startswith("retbench: 'some/file': Input/output error.")


@pytest.mark.parametrize("error", [MemoryError("no 3 GiB"), RuntimeError("CUDA error: out of memory")])
def test_memory_that_runs_out_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def read(*_: object) -> None:
        raise error

    monkeypatch.setattr("retbench.report.results.load_results", read)
    code, _, stderr = invoke("table", "latency", "--results", str(tmp_path))
    assert code == 3
    assert stderr.startswith("retbench: memory ran out: ")
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_a_folder_of_records_whose_name_is_no_text_is_refused(
    tmp_path: Path, tiny_experiment: Path, dry: tuple[str, ...]
) -> None:
    """Both before anything is written: the run failed when it started its first worker, and the dry run did not."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/f\xfcr")
    code, stdout, stderr = invoke("run", str(tiny_experiment), "--device", "cpu", "--out", folder, *dry)
    assert (code, stdout) == (2, "")
    assert stderr.splitlines()[-1].startswith("retbench: --out ")
    assert "not UTF-8" in stderr
    assert not os.path.lexists(folder)


def test_a_path_that_is_no_text_is_one_message(tmp_path: Path, tiny_experiment: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xfcr"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    path = shutil.copy(tiny_experiment, folder / "mine.toml")
    code, _, stderr = invoke("run", str(path), "--dry-run")
    assert code == 2
    assert "not UTF-8" in stderr
    assert len(stderr.splitlines()) == 1


def test_version() -> None:
    assert invoke("--version") == (0, f"{retbench.__version__}\n", "")


def test_list_shows_experiments_sizes_and_models() -> None:
    assert "latency" in invoke("list")[1]
    assert "arXiv:2307.08621" in invoke("list", "--sizes")[1]
    assert "retnet-torchscale" in invoke("list", "--models")[1]


@pytest.mark.parametrize(
    ("option", "key", "name"),
    [
        ((), "experiments", "latency"),
        (("--sizes",), "sizes", "6.7b"),
        (("--models",), "models", "transformer"),
    ],
)
def test_list_gives_json(option: tuple[str, ...], key: str, name: str) -> None:
    code, stdout, _ = invoke("list", *option, "--json")
    assert code == 0
    assert name in [row["name"] for row in json.loads(stdout)[key]]


def test_verify_shows_every_check_and_the_verdict() -> None:
    code, stdout, stderr = invoke("verify", "retnet", "--size", "300k", "--device", "cpu")
    assert (code, stderr) == (0, "")
    assert "recurrent" in stdout
    assert "not compared: chunkwise_fp32: it reads prompts as chunkwise does" in stdout
    assert "chunkwise_fp32 =" not in stdout
    assert stdout.splitlines()[-1] == "retnet 300K float32 cpu chunkwise: equivalent"


def test_a_failed_equivalence_check_ends_verify_with_1_and_names_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from retbench.models import equivalence

    monkeypatch.setattr(equivalence, "LIMITS", {torch.float32: 1e-12})
    code, stdout, stderr = invoke("verify", "transformer", "--size", "300k", "--device", "cpu", "--json")
    assert code == 1
    assert json.loads(stdout)["passed"] is False
    assert "not equivalent: " in stderr
    assert "tokens: error " in stderr
    assert ", limit 1e-12" in stderr


def test_verify_refuses_a_model_that_memory_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    free = psutil.virtual_memory()._replace(available=2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    code, stdout, stderr = invoke("verify", "retnet", "--size", "1m", "--device", "cpu")
    assert (code, stdout) == (3, "")
    assert "1.00 MiB of memory are free" in stderr


def test_env_shows_machine_ceilings_and_backends(tmp_path: Path) -> None:
    done = retbench_process("env", "--device", "cpu", "--ceilings", "--json", cwd=tmp_path)
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["environment"]["variables"]["OMP_PROC_BIND"] == "true"
    assert answer["environment"]["flush_denormal"] is True
    assert answer["ceilings"]["float32"]["read_bandwidth_bytes_per_s"] > 1e8
    assert answer["backends"]["retnet"]["chunkwise"] == {"float32": None, "bfloat16": None}
    assert "CUDA" in answer["backends"]["transformer"]["flash"]["bfloat16"]
    assert answer["environment"]["machine"]


def test_a_terminated_command_says_that_it_was_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "retbench", "check"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        usage = psutil.Process(one.pid)
        while sum(usage.cpu_times()[:2]) < 2.5:  # torch is loaded, and the check takes longer
            assert one.poll() is None
            time.sleep(0.05)
        one.send_signal(signal.SIGTERM)
        _, stderr = one.communicate(timeout=60)
    assert (one.returncode, stderr) == (130, "retbench: interrupted\n")


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGHUP))],
)
def test_an_interrupt_in_code_of_exec_ends_with_130_too(number: int, tmp_path: Path) -> None:
    """An import of torch runs such code, after which `python -m` was ended by SIGINT."""
    code = f'import os, time; exec("os.kill(os.getpid(), {number:d}); time.sleep(60)")'
    (tmp_path / "torch.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "retbench", "check"]
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # below nohup it would be ignored
    )
    assert (done.returncode, done.stderr) == (130, "retbench: interrupted\n")


def test_jobs_of_a_folder_that_does_not_exist_are_refused(tmp_path: Path) -> None:
    code, _, stderr = invoke("jobs", "--out", str(tmp_path / "nope"))
    assert code == 2
    assert "does not exist" in stderr


def test_of_many_unreadable_lines_the_first_are_told(measured: Path, tmp_path: Path) -> None:
    (records,) = (measured / "results").rglob("*.jsonl")
    (tmp_path / "more.jsonl").write_bytes(records.read_bytes() + b'{"schema_version": 99}\n' * 12)
    code, shown, stderr = invoke("table", "tiny", "--results", str(tmp_path / "more.jsonl"))
    assert code == 0
    assert "retnet" in shown
    assert stderr.count("schema_version is 99") == 5
    assert "7 more lines cannot be read" in stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_summarises_a_command_as_the_command_does(name: str) -> None:
    assert load_command(name).help.partition("\n\n")[0].replace("\n", " ") == COMMANDS[name]


def test_help_answers_at_once(tmp_path: Path) -> None:
    """One of five starts: what is loaded is fixed by test_imports, the time itself is noisy."""
    times = [math.inf]
    while min(times) >= 1.0:
        assert len(times) <= 5, times
        start = time.perf_counter()
        assert retbench_process("--help", cwd=tmp_path).returncode == 0
        times.append(time.perf_counter() - start)


@pytest.mark.parametrize("words", [("run", "latency"), ("train", "quality")])
def test_an_estimate_while_another_run_is_timing_ends_with_3(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path / "lock"))
    with timing_lock("retbench run other", "cpu", wait=print):
        code, stdout, stderr = invoke(*words, *TINY, "--dry-run", "--out", str(tmp_path / "out"))
    assert (code, stdout) == (3, "")
    assert "`retbench run other`" in stderr


def test_records_cannot_go_into_a_file(tmp_path: Path) -> None:
    """Refused before anything is measured."""
    taken = tmp_path / "taken"
    taken.write_text("", encoding="utf-8")
    code, _, stderr = invoke("run", "latency", "--profile", "smoke", "--out", str(taken))
    assert code == 2
    assert "is a file" in stderr


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("run", "memory", *TINY), "--out"),
        (("run", "memory", *TINY, "--dry-run"), "--out"),
        (("train", "quality", *TINY), "--out"),
        (("train", "quality", *TINY, "--dry-run"), "--out"),
        (("report", "--results", "RESULTS"), "--out"),
        (("compare", "RESULTS", "RESULTS"), "--out"),
        (("check",), "--out"),
        (("baseline", "save", "RESULTS"), "--folder"),
        (("baseline", "accept", "RESULTS", "--reason", "new"), "--folder"),
        (("baseline", "accept", "exact", "--reason", "new"), "--folder"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_refused_first(
    measured: Path, tmp_path: Path, words: tuple[str, ...], option: str
) -> None:
    """Before anything is measured, and by the option that it was given by."""
    (tmp_path / "taken").write_text("", encoding="utf-8")
    given = [str(measured / "results") if word == "RESULTS" else word for word in words]
    code, stdout, stderr = invoke(*given, option, str(tmp_path / "taken/below"))
    assert code == 2
    assert stdout == ""
    assert "cannot be written to: Not a directory" in stderr
    assert f"another folder with {option}" in stderr
