"""Runs from training to records of quality, by the commands that a user types."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from retbench.cli import app
from retbench.records.documents import read_documents
from retbench.records.record import Record
from retbench.records.store import read_records
from retbench.running import process
from retbench.running.process import Worker
from retbench.running.protocol import Job

TRANSFORMER = """\
[models.transformer]
architecture = "transformer"
"""
EXPERIMENT = f"""\
title = "Tiny quality"
source = "none; made for tests"
expect = "It runs."

[models.retnet]
architecture = "retnet"

{TRANSFORMER}
[profiles.smoke]
size = "25k"
threads = 1
[profiles.smoke.training]
corpus = "CORPUS"
sizes = ["25k"]
seq_len = 64
batch_size = 2
num_tokens = 512
learning_rates = [4e-3]
validation_tokens = 128
seeds = [0, 1]
[profiles.smoke.workloads.perplexity]
corpora = ["CORPUS"]
split = "all"
limit = 3
protocols = {{ whole = [64], strided = [64] }}
"""
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, an experiment, and the models that were trained of it."""
    folder = tmp_path_factory.mktemp("quality")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(5):
        (texts / f"{number}.txt").write_text(f"Text {number} says what texts say. " * 12, encoding="utf-8")
    (folder / "tiny.toml").write_text(EXPERIMENT.replace("CORPUS", str(texts)), encoding="utf-8")
    done = run_in(folder, "train", "tiny.toml", "--profile", "smoke", "--device", "cpu")
    assert done.exit_code == 0, done.output
    return folder


def run_in(folder: Path, *words: str) -> Result:
    """One command, in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RETBENCH_CACHE", str(folder / "cache"))
        return CliRunner().invoke(app, [*words])


def run_tiny(folder: Path, *words: str) -> Result:
    return run_in(folder, "run", "tiny.toml", "--profile", "smoke", "--device", "cpu", *words)


@pytest.mark.slow
def test_a_dry_run_does_not_pretend_to_know_what_an_evaluation_takes(folder: Path) -> None:
    done = run_tiny(folder, "--dry-run", "--json")
    cells = json.loads(done.stdout)["cells"]
    assert {cell["workload"] for cell in cells} == {"perplexity"}
    assert {(cell["seconds"], cell["memory_bytes"]) for cell in cells} == {(None, None)}
    rows = run_tiny(folder, "--dry-run").stdout.splitlines()[2:]
    assert len(set(rows)) == len(rows)
    assert rows[0].startswith("| retnet 25K seed 0 |")
    assert f"perplexity of {folder / 'texts'}, whole" in rows[0]
    assert rows[-1].startswith("| none is estimated |")
    decode = "workloads.decode={context_len=[64]}"
    table = run_tiny(folder, "--dry-run", "--set", decode).stdout.splitlines()
    for line in table[2:]:
        assert ("not estimated" in line) == ("perplexity" in line)
    assert "all that are estimated" in table[-1]


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    """Jobs of the workers of the run that `measured` is the result of."""
    return []


@pytest.fixture(scope="module")
def measured(given_products: None, folder: Path, jobs: list[Job]) -> list[Record]:
    """Records of a run over everything that was trained."""

    def start(job: Job, *rest: Any) -> Worker:
        jobs.append(job)
        return Worker(job, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "Worker", start)
        done = run_tiny(folder)
    assert done.exit_code == 0, done.output
    records, problems = read_records(folder / "results")
    assert not problems
    return [record for record in records if record.workload == "perplexity"]


def test_every_trained_model_is_measured_once_by_every_protocol(measured: list[Record]) -> None:
    found = {(r.model.name, r.model.weights and r.model.weights.seed, r.point.protocol) for r in measured}
    assert found == {
        (name, seed, protocol)
        for name in ("retnet", "transformer")
        for seed in (0, 1)
        for protocol in ("whole", "strided")
    }
    assert len(measured) == len(found)
    assert {record.status for record in measured} == {"ok"}


def test_the_worker_that_evaluates_a_model_checks_it_and_measures_no_ceilings(
    measured: list[Record], jobs: list[Job]
) -> None:
    assert [job.task for job in jobs] == ["measure"] * 4
    assert all(record.gate and not record.ceilings for record in measured)


def test_a_record_says_what_the_weights_are_of(measured: list[Record]) -> None:
    for record in measured:
        weights = record.model.weights
        assert weights is not None
        assert (weights.source, weights.format, weights.num_tokens) == ("tiny/smoke", "retbench", 512)
        assert weights.learning_rate == 4e-3
        assert record.gate is not None
        assert record.gate.passed
        assert record.settings["tokenizer"] == "bytes"
    assert len({record.model.weights.fingerprint for record in measured if record.model.weights}) == 4


def test_documents_add_up_to_the_record(folder: Path, measured: list[Record]) -> None:
    paths = {path.name: path for path in (folder / "results").rglob("*.documents.jsonl.gz")}
    for record in measured:
        assert record.documents is not None
        rows = read_documents(paths[record.documents.file].parent, record.documents)
        assert len(rows) == record.documents.num_documents == 3
        tokens = sum(row["num_tokens"] for row in rows)
        assert tokens == record.metrics["num_tokens"].value
        nats = sum(row["nll_nats"] for row in rows) / tokens
        assert nats == pytest.approx(record.metrics["nats_per_token"].value, rel=1e-12)
        assert nats < 5.6  # below log 257: something was learned


def test_the_same_command_measures_nothing_again(folder: Path, measured: list[Record]) -> None:
    done = run_tiny(folder, "--json")
    assert json.loads(done.stdout)["skipped"] == len(measured)
    assert json.loads(done.stdout)["counts"] == {}


def test_what_was_not_trained_is_asked_for(folder: Path) -> None:
    done = run_tiny(folder, "--set", "training.seeds=[0, 7]", "--set", "min_steps=9")
    assert done.exit_code == 2
    assert "there is no trained 'retnet' of size 25K seed 7 of tiny/smoke under results" in done.stderr
    command = "retbench train tiny.toml --set 'training.seeds=[0, 7]' --profile smoke --out results"
    assert command in done.stderr


def test_random_weights_are_not_judged(folder: Path) -> None:
    text = (folder / "tiny.toml").read_text(encoding="utf-8")
    start, end = text.index("[profiles.smoke.training]"), text.index("[profiles.smoke.workloads")
    (folder / "random.toml").write_text(text[:start] + text[end:], encoding="utf-8")
    done = run_in(folder, "run", "random.toml", "--profile", "smoke", "--device", "cpu")
    assert done.exit_code == 2
    assert "'retnet' has random weights" in done.stderr


@contextmanager
def changed(file: Path, content: bytes) -> Iterator[None]:
    """A file with other content for a while."""
    before = file.read_bytes()
    try:
        file.write_bytes(content)
        yield
    finally:
        file.write_bytes(before)


def newest(folder: Path) -> list[Record]:
    """Records of the latest run below a folder of results."""
    records, problems = read_records(folder)
    assert not problems
    latest = max(records, key=lambda record: record.started_at).run_id
    return [record for record in records if record.run_id == latest]


FINAL = "results/checkpoints/tiny/smoke/retnet-25k-seed0/final"
ONE_SEED = ("--set", "training.seeds=[0]")


def test_a_model_whose_configuration_is_damaged_is_refused(folder: Path, measured: list[Record]) -> None:
    file = folder / FINAL / "config.json"
    with changed(file, file.read_bytes()[:100]):
        done = run_tiny(folder, "--fresh")
    assert done.exit_code == 2
    assert "config.json" in done.stderr


@pytest.mark.slow
def test_damaged_weights_cost_their_model_and_no_other(folder: Path, measured: list[Record]) -> None:
    file = folder / FINAL / "model.safetensors"
    # Of the right size, so that only reading them tells.
    with changed(file, file.read_bytes()[:-64] + bytes(64)):
        done = run_tiny(folder, "--fresh", *ONE_SEED)
    assert done.exit_code == 1
    found = newest(folder / "results")
    assert {(r.model.name, r.status) for r in found} == {("retnet", "failed"), ("transformer", "ok")}
    for record in found:
        if record.status == "failed":  # where it is and what is wrong, not a line of our source
            assert str(record.error).startswith(str(file.relative_to(folder)))


@pytest.mark.slow
def test_a_question_without_an_answer_costs_no_other(folder: Path, measured: list[Record]) -> None:
    """A corpus that is too short for a protocol is found only when it is read."""
    protocols = "workloads.perplexity.protocols={whole = [64], last = [512]}"
    options = ("--out", "short", *ONE_SEED, "--set", protocols)
    shutil.copytree(folder / "results/checkpoints", folder / "short/checkpoints")
    done = run_tiny(folder, *options)
    assert done.exit_code == 1
    found = newest(folder / "short")
    assert {(r.point.protocol, r.status) for r in found} == {("whole", "ok"), ("last", "failed")}
    assert len(found) == 4
    for record in found:
        if record.point.protocol == "last":
            assert re.match(r"corpus '.*', split 'all': no document is long enough", str(record.error))
    again = run_tiny(folder, *options, "--json")
    assert json.loads(again.stdout)["counts"] == {"failed": 2}
    assert json.loads(again.stdout)["skipped"] == 2


@pytest.mark.parametrize(
    ("workloads", "code", "reason"),
    [
        ('zeroshot={tasks=["piqa"]}', 3, "task piqa: HF_HUB_OFFLINE"),
        ('zeroshot={tasks=["storycloze_2016"]}', 3, "its data is given out by its authors only"),
        ('zeroshot={tasks=["wikitext"], num_fewshot=[0, 4]}', 2, "takes no examples, and num_fewshot is 4"),
        ('zeroshot={tasks=["copa"], fewshot_seed=7}', 2, "no examples are drawn; remove it"),
        ('zeroshot={tasks=["copa"], fewshot_sed=7}', 2, "Did you mean 'fewshot_seed'?"),
        ('perplexity={corpora=["nowhere"], protocols={whole=[8]}}', 2, "unknown corpus 'nowhere'"),
        ('perplexity={corpora=["two"], protocols={whole=[8]}}', 2, "no split 'test'; it has validation, all"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, workloads: str, code: int, reason: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RETBENCH_DATA", raising=False)
    (folder / "two").mkdir(exist_ok=True)
    (folder / "two/valid.txt").write_text("A text.", encoding="utf-8")
    before = set((folder / "results").rglob("*.jsonl"))
    done = run_tiny(folder, "--set", f"workloads={{{workloads}}}")
    assert done.exit_code == code
    assert reason in " ".join(done.stderr.split())
    assert set((folder / "results").rglob("*.jsonl")) == before


def test_a_pickle_is_refused_before_anything_is_measured(folder: Path) -> None:
    shutil.copytree(folder / FINAL, folder / "pickled")
    (folder / "pickled/model.safetensors").rename(folder / "pickled/model.pt")
    before = set((folder / "results").rglob("*.jsonl"))
    done = run_tiny(folder, "--set", "models.retnet.checkpoint=pickled", *ONE_SEED)
    assert done.exit_code == 2
    assert "pickled/model.pt: is a pickle" in done.stderr
    assert set((folder / "results").rglob("*.jsonl")) == before


def test_a_corpus_that_has_changed_since_the_training_is_refused(
    folder: Path, measured: list[Record]
) -> None:
    file = folder / "texts/3.txt"
    with changed(file, b"Another text. " * 20):
        done = run_tiny(folder)
    said = " ".join(done.stderr.split())
    assert done.exit_code == 2
    assert "has changed since 'retnet 25K seed 0' was trained on it (fingerprint " in said
    assert "retbench train tiny --profile smoke --fresh" in said


def test_a_corpus_that_has_changed_is_not_read_by_a_model_that_is_named_by_its_path(
    folder: Path, measured: list[Record]
) -> None:
    words = ["run", without_transformer(folder), "--profile", "smoke", "--device", "cpu"]
    with changed(folder / "texts/3.txt", b"Another text. " * 20):
        done = run_in(folder, *words, f"--set=models.retnet.checkpoint={FINAL}")
    assert done.exit_code == 2
    assert "has changed since 'retnet' was trained on it (fingerprint " in " ".join(done.stderr.split())


def test_text_of_the_training_is_stated_in_the_report(folder: Path, measured: list[Record]) -> None:
    done = run_in(folder, "report", "--out", "report")
    assert done.exit_code == 0, done.output
    text = (folder / "report/report.md").read_text(encoding="utf-8")
    assert "its split 'all' holds the training text" in text


Answers = dict[int | None, tuple[Record, list[list[float]]]]


def ask_copa(folder: Path, name: str, *options: str) -> Answers:
    """Return the RetNet's answers to COPA's questions, with the record, by the number of examples."""
    out = folder / name
    shutil.copytree(folder / "results/checkpoints", out / "checkpoints")
    wanted = ", ".join(('tasks=["copa"]', "num_fewshot=[0, 2]", "context_len=256", *options))
    workloads = f"workloads={{zeroshot={{{wanted}}}}}"
    done = run_tiny(folder, "--out", name, "--data-dir", ".", *ONE_SEED, "--set", workloads)
    assert done.exit_code == 0, done.output
    found: Answers = {}
    for record in newest(out):
        if record.model.name == "retnet":
            assert record.documents is not None
            (path,) = out.rglob(record.documents.file)
            rows = read_documents(path.parent, record.documents)
            found[record.point.num_fewshot] = record, [row["loglikelihoods"] for row in rows]
    assert found.keys() == {0, 2}
    return found


@pytest.mark.slow
def test_the_seed_of_the_examples_and_the_first_token_mark_are_those_of_the_file(folder: Path) -> None:
    fields = ("premise", "choice1", "choice2", "question", "label")
    rows = [(f"It was {number}.", f"So {number}.", "No.", "effect", 0) for number in range(12)]
    (folder / "copa").mkdir()
    (folder / "copa/validation.jsonl").write_text(
        "\n".join(json.dumps(dict(zip(fields, row, strict=True))) for row in rows), encoding="utf-8"
    )
    plain, chosen = ask_copa(folder, "plain"), ask_copa(folder, "chosen", "fewshot_seed=7", "add_bos=true")
    for answers, seed, mark in ((plain, 1234, False), (chosen, 7, True)):
        record, _ = answers[2]
        assert (record.backend["fewshot_seed"], record.settings["add_bos"]) == (seed, mark)
    without, after_two = (
        [run[shots][0].backend["prompts_fingerprint"] for run in (plain, chosen)] for shots in (0, 2)
    )
    assert after_two[0] != after_two[1]  # other examples
    assert without[0] == without[1]  # the same text, read after a mark or without one
    assert plain[0][1] != chosen[0][1]


def test_an_unknown_task_is_refused_with_its_neighbour(folder: Path) -> None:
    done = run_tiny(folder, "--set", 'workloads={zeroshot={tasks=["hellaswg"]}}')
    assert done.exit_code == 2
    assert "unknown zero-shot task 'hellaswg'. Did you mean 'hellaswag'?" in done.stderr


def without_transformer(folder: Path) -> str:
    """Name of the experiment with its RetNet alone."""
    text = (folder / "tiny.toml").read_text(encoding="utf-8")
    (folder / "alone.toml").write_text(text.replace(TRANSFORMER, ""), encoding="utf-8")
    return "alone.toml"


def test_a_checkpoint_is_measured_by_its_place_below_the_data_folder(
    folder: Path, measured: list[Record]
) -> None:
    words = ["run", without_transformer(folder), "--profile", "smoke", "--device", "cpu", "--out", "other"]
    words += ["--data-dir", "results/checkpoints/tiny/smoke"]
    done = run_in(folder, *words, "--set=models.retnet.checkpoint=retnet-25k-seed1/final")
    assert done.exit_code == 0, done.output
    records, _ = read_records(folder / "other")
    for record in records:
        assert record.model.weights is not None
        assert record.model.weights.corpus == str(folder / "texts")
        assert record.model.weights.num_tokens == 512
    by_path = {r.point.protocol: r.metrics["nats_per_token"].value for r in records}
    trained = {
        r.point.protocol: r.metrics["nats_per_token"].value
        for r in measured
        if r.model.name == "retnet" and r.model.weights and r.model.weights.seed == 1
    }
    assert by_path == trained
