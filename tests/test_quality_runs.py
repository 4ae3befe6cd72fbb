"""From training to records of quality, by the commands that a user types."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from retbench.cli import app
from retbench.documents import read_documents
from retbench.records import Record, read_records

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
size = "300k"
threads = 1
[profiles.smoke.training]
corpus = "CORPUS"
sizes = ["300k"]
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


@pytest.fixture(scope="module")
def measured(folder: Path) -> list[Record]:
    """Records of a run over everything that was trained."""
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
    assert len({record.pair_id for record in measured}) == 1


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
    done = run_tiny(folder, "--set", "training.seeds=[0, 7]")
    assert done.exit_code == 2
    assert "there is no trained 'retnet' of size 300k seed 7 of tiny/smoke under results" in done.stderr
    assert "retbench train tiny --profile smoke --out results" in done.stderr


def test_random_weights_are_not_judged(folder: Path) -> None:
    text = (folder / "tiny.toml").read_text(encoding="utf-8")
    start, end = text.index("[profiles.smoke.training]"), text.index("[profiles.smoke.workloads")
    (folder / "random.toml").write_text(text[:start] + text[end:], encoding="utf-8")
    done = run_in(folder, "run", "random.toml", "--profile", "smoke", "--device", "cpu")
    assert done.exit_code == 2
    assert "'retnet' has random weights, and perplexity of them say nothing" in done.stderr


@pytest.mark.parametrize("damage", ["config", "weights"])
def test_a_damaged_model_is_named(folder: Path, measured: list[Record], damage: str) -> None:
    path = folder / "results/checkpoints/tiny/smoke/retnet-300k-seed0/final"
    file = path / ("config.json" if damage == "config" else "model.safetensors")
    before = file.read_bytes()
    try:
        file.write_bytes(before[: len(before) // 2])
        done = run_tiny(folder, "--fresh")
    finally:
        file.write_bytes(before)
    assert done.exit_code != 0
    assert file.name in done.output


def test_an_unknown_task_is_refused_with_its_neighbour(folder: Path) -> None:
    done = run_tiny(folder, "--set", 'workloads={zeroshot={tasks=["hellaswg"]}}')
    assert done.exit_code == 2
    assert "unknown zero-shot task 'hellaswg'. Did you mean 'hellaswag'?" in done.stderr


def test_a_checkpoint_is_measured_by_its_path(folder: Path, measured: list[Record]) -> None:
    text = (folder / "tiny.toml").read_text(encoding="utf-8")
    (folder / "alone.toml").write_text(text.replace(TRANSFORMER, ""), encoding="utf-8")
    path = "results/checkpoints/tiny/smoke/retnet-300k-seed1/final"
    words = ["run", "alone.toml", "--profile", "smoke", "--device", "cpu", "--out", "other"]
    done = run_in(folder, *words, f"--set=models.retnet.checkpoint={path}")
    assert done.exit_code == 0, done.output
    records, _ = read_records(folder / "other")
    by_path = {r.point.protocol: r.metrics["nats_per_token"].value for r in records}
    trained = {
        r.point.protocol: r.metrics["nats_per_token"].value
        for r in measured
        if r.model.name == "retnet" and r.model.weights and r.model.weights.seed == 1
    }
    assert by_path == trained
