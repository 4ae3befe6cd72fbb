"""Recorded scores in lm-eval's files: those that lm-eval itself writes for the same model, read by its own code."""

import json
from pathlib import Path
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
from retbench.evaluation.lm import DecoderLM
from retbench.evaluation.tasks import load_task
from retbench.evaluation.zeroshot import lm_eval_results
from retbench.records.documents import write_documents
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
}
SPLIT = {"copa": "validation", "lambada_openai": "test", "wikitext": "test"}
NAME = "results_2026-11-27T21-00-02.000.json"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a few rows of three tasks."""
    for task, rows in ROWS.items():
        path = tmp_path / "data" / task / f"{SPLIT[task]}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path / "data"


def record_of(data: Path, folder: Path, task: str, number: int) -> Record:
    """Score a task by the workload, as a worker does, and record it."""
    context = make_context(data, "retnet", "zeroshot", {"task": task, "context_len": 512}, {})
    found = zeroshot.measure(context)
    documents = write_documents(folder, f"run-{task}", found.documents)
    outcome = Outcome("ok", f"2026-11-27T21:00:0{number}.000Z", found=found, documents=documents)
    run = RunInfo(
        run_id="run", experiment="zeroshot", profile="smoke", command="retbench run", code_revision="1"
    )
    return make_record(run, context.cell, 0, outcome, Surroundings({"machine": "m"}))


@pytest.fixture
def results(data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    for number, task in enumerate(ROWS):
        append_record(folder / "run.jsonl", record_of(data, folder, task, number))
    return folder


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
    found = json.loads(next(path for path in written if path.name == NAME).read_text(encoding="utf-8"))
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


def test_lm_eval_reads_them(results: Path, data: Path, tmp_path: Path) -> None:
    export(results, data)
    names = [str(path) for path in (tmp_path / "out").rglob("*.json*")]
    (name,) = get_results_filenames(names)
    samples = get_sample_results_filenames(names)
    assert sorted(get_file_task_name(Path(one).name) for one in samples) == sorted(ROWS)
    assert {get_file_datetime(Path(one).name) for one in samples} == {"2026-11-27T21-00-02.000"}
    shown = make_table(json.loads(Path(name).read_text(encoding="utf-8")))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()[2:]]
    (row,) = [row for row in rows if row[0] == "copa"]
    record = json.loads((results / "run.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert float(row[6]) == pytest.approx(record["metrics"]["acc"]["value"], abs=1e-4)
    assert float(row[8]) == pytest.approx(record["metrics"]["acc_stderr"]["value"], abs=1e-4)


def test_data_that_changed_are_refused(results: Path, data: Path) -> None:
    path = data / "copa" / "validation.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("B two", "B three"), encoding="utf-8")
    done = export(results, data)
    assert done.exit_code != 0
    assert (
        "task copa of retnet: the data here are not those that were scored: document 0 has another"
        in done.output
    )
    assert "--data-dir" in done.output


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
