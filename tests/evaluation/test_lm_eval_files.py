"""Recorded scores in lm-eval's files: those that lm-eval itself writes for the same model, read by its own code."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import (
    get_file_datetime,
    get_file_task_name,
    get_results_filenames,
    get_sample_results_filenames,
    make_table,
)
from typer.testing import CliRunner

from retbench.cli import app
from retbench.data.tokenizers import load_tokenizer
from retbench.evaluation import ruler
from retbench.evaluation.lm import DecoderLM
from retbench.evaluation.tasks import load_task
from retbench.evaluation.zeroshot import lm_eval_results
from retbench.records.documents import read_documents, write_documents
from retbench.records.record import Record
from retbench.records.store import append_record
from retbench.running.protocol import RunInfo
from retbench.running.recording import Outcome, Surroundings, make_record
from retbench.workloads import zeroshot
from tests.workloads.quality import make_context

COPA = {"premise": "It was.", "choice1": "A.", "choice2": "B two.", "question": "cause"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "copa": [{**COPA, "premise": text, "label": index % 2} for index, text in enumerate("abcde")],
    "lambada_openai": [{"text": "the end of the"}, {"text": "a b c d"}],
    "wikitext": [{"page": " = A = \n\n A sentence of the page . \n"}, {"page": " = B = \n"}],
    "squad_completion": [
        {"text": "Bo is a king. The king is", "value": "Bo"},
        {"text": "Al was a king. He was not", "value": "a"},
    ],
}
SPLIT = {
    "copa": "validation",
    "lambada_openai": "test",
    "wikitext": "test",
    "squad_completion": "validation",
}
DATE = f"2026-11-27T21-00-0{len(ROWS) - 1}.000"
NEEDLE = "niah_single_1"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `data` with a few rows of four tasks, and a folder `results` with a model's scores."""
    folder = tmp_path_factory.mktemp("scored")
    for task, rows in ROWS.items():
        path = folder / "data" / task / f"{SPLIT[task]}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "results").mkdir()
    for number, task in enumerate(ROWS):
        record = record_of(folder / "data", folder / "results", task, number)
        append_record(folder / "results" / "run.jsonl", record)
    return folder


@pytest.fixture
def data(scored: Path, tmp_path: Path) -> Path:
    """A copy of the rows, which a test may change."""
    return Path(shutil.copytree(scored / "data", tmp_path / "data"))


@pytest.fixture
def results(scored: Path, tmp_path: Path) -> Path:
    """A copy of the scores."""
    return Path(shutil.copytree(scored / "results", tmp_path / "results"))


def record_of(data: Path, folder: Path, task: str, number: int, **evaluation: Any) -> Record:
    """Score a task by the workload, as a worker does, and record it."""
    context = make_context(data, "retnet", "zeroshot", {"task": task, "context_len": 512}, evaluation)
    found = zeroshot.measure(context)
    documents = write_documents(folder, f"run-{task}", found.documents)
    outcome = Outcome("ok", f"2026-11-27T21:00:0{number}.000Z", found=found, documents=documents)
    run = RunInfo(
        run_id="run", experiment="zeroshot", profile="smoke", command="retbench run", code_revision="1"
    )
    return make_record(run, context.cell, 0, outcome, Surroundings({"machine": "m"}))


def export(results: Path, data: Path) -> Any:
    out = results.parent / "out"
    arguments = ["export-results", "zeroshot", str(out), "--results", str(results), "--data-dir", str(data)]
    return CliRunner().invoke(app, arguments)


def by_lm_eval(data: Path, folder: Path) -> Path:
    """Score the same model by lm-eval alone, written by its own code."""
    context = make_context(data, "retnet", "zeroshot", {"task": "copa", "context_len": 512}, {})
    lm = DecoderLM(context.model, load_tokenizer("bytes"), max_length=512)
    parts = [lm_eval_results(lm, load_task(task, data_dir=data), limit=None) for task in ROWS]
    samples = {name: rows for part in parts for name, rows in part.pop("samples").items()}
    merged = {key: {name: one for part in parts for name, one in part[key].items()} for key in parts[0]}
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args("retbench", "pretrained=retnet", None, None, False)
    tracker.save_results_aggregated(merged, samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task, rows)
    return folder / "retnet"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_files_are_those_of_lm_eval(results: Path, data: Path, tmp_path: Path) -> None:
    done = export(results, data)
    assert done.exit_code == 0, done.output
    theirs = by_lm_eval(data, tmp_path / "theirs")
    written = sorted((tmp_path / "out" / "retnet").iterdir())
    assert [str(path) for path in written] == sorted(done.stdout.split())
    expected = json.loads(next(theirs.glob("results_*")).read_text(encoding="utf-8"))
    found = json.loads(
        next(path for path in written if path.name == f"results_{DATE}.json").read_text(encoding="utf-8")
    )
    for key in (
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
        "task_hashes",
        "model_name",
    ):
        assert found[key] == expected[key], key
    for task, scores in expected["results"].items():
        mine = found["results"][task]
        assert mine.keys() == scores.keys()
        assert {name: mine[name] for name in mine if "_stderr" not in name} == {
            name: scores[name] for name in scores if "_stderr" not in name
        }
    for task in ROWS:
        mine, other = (next(folder.glob(f"samples_{task}_*")) for folder in (tmp_path / "out/retnet", theirs))
        assert read_lines(mine) == read_lines(other)


@pytest.mark.parametrize(("started_at", "model", "code"), [("x/../../../y", "retnet", 0), (None, "..", 2)])
def test_a_record_cannot_choose_another_folder(
    results: Path, data: Path, tmp_path: Path, started_at: str | None, model: str, code: int
) -> None:
    path = results / "run.jsonl"
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    line["started_at"], line["model"]["name"] = started_at or line["started_at"], model
    path.write_text(json.dumps(line), encoding="utf-8")
    before = {*tmp_path.rglob("*")}
    done = export(results, data)
    assert done.exit_code == code, done.output
    new = {*tmp_path.rglob("*")} - before
    assert {one for one in new if one.is_file()} == {Path(name) for name in done.stdout.split()}
    assert new <= {*(tmp_path / "out").rglob("*"), tmp_path / "out"}


def test_lm_eval_reads_them(results: Path, data: Path, tmp_path: Path) -> None:
    export(results, data)
    names = [str(path) for path in (tmp_path / "out").rglob("*.json*")]
    (name,) = get_results_filenames(names)
    samples = get_sample_results_filenames(names)
    assert sorted(get_file_task_name(Path(one).name) for one in samples) == sorted(ROWS)
    assert {get_file_datetime(Path(one).name) for one in samples} == {DATE}
    shown = make_table(json.loads(Path(name).read_text(encoding="utf-8")))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()[2:]]
    (row,) = [row for row in rows if row[0] == "copa"]
    record = json.loads((results / "run.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert float(row[6]) == pytest.approx(record["metrics"]["acc"]["value"], abs=1e-4)
    assert float(row[8]) == pytest.approx(record["metrics"]["acc_stderr"]["value"], abs=1e-4)


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give lm-eval's generator three words in place of `wonderwords`, whose list takes half a gigabyte."""
    for package in ("nltk", "transformers"):
        pytest.importorskip(package, reason="the extra recall is not installed")
    words = {kind: ["red", "hen", "sit"] for kind in ("nouns", "adjectives", "verbs")}
    stand_in = SimpleNamespace(RandomWord=lambda: SimpleNamespace(_categories=words))
    monkeypatch.setitem(sys.modules, "wonderwords", stand_in)
    monkeypatch.setattr(ruler, "find_spec", lambda package: package)
    yield
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ruler")]:
        del sys.modules[name]


@pytest.mark.usefixtures("few_words")
def test_prompts_that_are_generated_are_generated_again(data: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    needles = record_of(data, results, NEEDLE, 0, limit=1)
    for record in (needles, record_of(data, results, "copa", 1)):
        append_record(results / "run.jsonl", record)
    done = export(results, data)
    assert done.exit_code == 0, done.output
    assert needles.documents is not None
    texts = [row["text"] for row in read_documents(results, needles.documents)]
    (samples,) = (tmp_path / "out" / "retnet").glob(f"samples_{NEEDLE}_*")
    assert [row["resps"] for row in read_lines(samples)] == [[[text]] for text in texts]
    (scores,) = (tmp_path / "out" / "retnet").glob("results_*")
    found = json.loads(scores.read_text(encoding="utf-8"))["results"]
    assert found.keys() == {NEEDLE, "copa"}
    assert found[NEEDLE]["contains,none"] == needles.metrics["contains"].value

    settings = needles.settings | {"tokenizer_fingerprint": "another"}
    (results / "run.jsonl").unlink()
    append_record(results / "run.jsonl", needles.model_copy(update={"settings": settings}))
    done = export(results, data)
    assert done.exit_code == 2
    assert "for a tokenizer of fingerprint another, and 'bytes' has 202cea937973" in done.stderr


def test_a_kind_of_request_that_a_model_does_not_answer_is_no_fault_of_the_data(data: Path) -> None:
    with pytest.raises(AttributeError, match="loglikelihood"):
        lm_eval_results(SimpleNamespace(rank=0, world_size=1), load_task("copa", data_dir=data), limit=1)


def test_tasks_whose_data_changed_or_are_missing_are_left_out(
    results: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = data / "copa" / "validation.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("B two", "B three"), encoding="utf-8")
    done = export(results, data)
    assert done.exit_code == 2
    assert (
        "task copa of retnet: the data here are not those that were scored: document 0 has another"
        in done.stderr
    )
    assert "--data-dir" in done.stderr
    written = {path.name for path in (results.parent / "out" / "retnet").iterdir()}
    others = {f"samples_{task}_{DATE}.jsonl" for task in ROWS if task != "copa"}
    assert written == {f"results_{DATE}.json", *others}
    assert sorted(Path(line).name for line in done.stdout.splitlines()) == sorted(written)
    shutil.rmtree(data / "wikitext")
    done = export(results, data)
    assert "left out: task wikitext of retnet: " in done.stderr
    assert (done.exit_code, len(done.stdout.splitlines())) == (1, 3)
    shutil.rmtree(data)
    done = export(results, data.parent)
    assert (done.exit_code, done.stdout) == (3, "")


def test_fewer_rows_than_were_scored_are_refused(results: Path, data: Path) -> None:
    path = data / "copa" / "validation.jsonl"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0], encoding="utf-8")
    done = export(results, data)
    assert done.exit_code != 0
    assert "the data here are not those that were scored" in done.output


def test_records_without_task_scores_are_refused(results: Path, data: Path) -> None:
    done = CliRunner().invoke(
        app, ["export-results", "latency", str(data / "out"), "--results", str(results)]
    )
    assert done.exit_code == 2
    assert (
        f"{results}: holds no record of 'latency'. Measure it first: `retbench run latency`." in done.stderr
    )
