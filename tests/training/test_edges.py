"""`retbench train` with missing or short text or a full disk: its message, and the files it leaves."""

import json
import os
import resource
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from typer.testing import CliRunner, Result

from retbench.architectures import blame
from retbench.cli import app
from retbench.cli import train as cli_train
from retbench.cli.train import carry_out
from retbench.data.tokenizers import ByteTokenizer
from retbench.errors import ConfigError, UnsupportedError
from retbench.mixers.retention.module import RetentionModule
from retbench.running.locks import Interrupted
from retbench.training.optimization import validation_rows
from retbench.training.plan import TrainingPlan
from retbench.training.trained import lock_runs, run_folder

SMALL = ("--set", 'training.sizes=["300k"]', "--set", "training.num_tokens=384")


def words(experiment: Path, out: Path, *options: str) -> list[str]:
    return ["train", str(experiment), "--profile", "cpu", "--device", "cpu", "--out", str(out), *options]


def train(experiment: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, words(experiment, out, *SMALL, *options))


def write_corpus(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


TEXT = "Something to learn from, and more of it. " * 30


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate 2 GiB", "CUBLAS_STATUS_ALLOC_FAILED"]
)
def test_a_training_that_does_not_fit_in_memory_is_one_message(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    def fill(self: RetentionModule, *args: Any, **named: Any) -> Tensor:
        raise RuntimeError(words)

    monkeypatch.setattr(RetentionModule, "forward", fill)
    failed = train(experiment, tmp_path / "out")
    assert failed.exit_code == UnsupportedError.exit_code
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("retbench: training of retnet at size 300k does not fit in the memory of cpu")
    assert words in last
    assert "activation_checkpointing=true" in last


def test_what_fails_in_a_user_s_mixer_is_reported_in_one_line(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it fails in training alone: the check before it has nothing against it."""
    forward = RetentionModule.forward

    def cut(self: RetentionModule, *args: Any, **named: Any) -> Tensor:
        return forward(self, *args, **named)[..., int(self.training) :]

    monkeypatch.setattr(RetentionModule, "forward", cut)
    monkeypatch.setattr(blame, "package_of", lambda kind: "mine")
    failed = train(experiment, tmp_path / "out")
    assert failed.exit_code == 2
    assert failed.stderr.splitlines()[-1].startswith("retbench: package 'mine': RuntimeError: The size of")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"README.md": TEXT}, "no text in this folder"),
        ({"a.txt": "", "b.txt": " \n"}, "has 2 files, and all are empty"),
        ({"a.txt": "Too short."}, "has no split 'train'; it has all. Use another corpus"),
        ({"train/a.txt": TEXT, "test/b.txt": TEXT}, "has no split 'validation'; it has train, test, all"),
        (
            {"train/a.txt": "Less than a batch.", "validation/b.txt": TEXT},
            "a batch takes 2 x 49 = 98 tokens and",
        ),
    ],
)
def test_a_corpus_that_is_not_enough_is_refused_and_leaves_nothing_in_the_way(
    experiment: Path, tmp_path: Path, texts: dict[str, str], message: str
) -> None:
    corpus = write_corpus(tmp_path / "few", texts)
    refused = train(experiment, tmp_path / "out", "--set", f"training.corpus={corpus}")
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert train(experiment, tmp_path / "out").exit_code == 0


def test_a_missing_data_folder_is_refused(experiment: Path, tmp_path: Path) -> None:
    refused = train(experiment, tmp_path, "--data-dir", str(tmp_path / "nowhere"))
    assert refused.exit_code == 2
    assert "--data-dir" in refused.stderr
    assert not (tmp_path / "checkpoints").exists()


def test_one_token_cannot_be_scored() -> None:
    class OneToken:
        """Stands for `PackedTokens` with a single token."""

        split, tokens = "validation", [7]

        class header:  # noqa: N801 - an attribute of the real one
            corpus = "tiny"

        def __len__(self) -> int:
            return 1

    with pytest.raises(
        ConfigError,
        match="'validation' of 'tiny' has 1 token, and the first has none before it to predict it from",
    ):
        validation_rows(OneToken(), 100, 48)  # type: ignore[arg-type]


def test_a_signal_while_text_is_packed_ends_it(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting(ByteTokenizer):
        """Sends this process a signal with every document."""

        def encode(self, text: str) -> list[int]:
            os.kill(os.getpid(), signal.SIGINT)
            return super().encode(text)

    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))
    code = carry_out(
        replace(plan, source=replace(plan.source, tokenizer=Interrupting())),
        tmp_path / "out",
        "json",
        fresh=False,
    )
    assert code == 130
    printed = json.loads(capsys.readouterr().out)
    assert (printed["interrupted"], printed["runs"]) == (True, [])
    assert [path.suffix for path in (tmp_path / "cache/packed").iterdir()] == [".lock"]
    assert not (tmp_path / "out").exists()


def test_two_commands_do_not_train_one_run_into_one_folder_at_once(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever hardware each has: on one device the timing lock would keep them apart."""
    monkeypatch.setattr(cli_train, "_hold_devices", lambda *_: nullcontext())
    waited: list[Path] = []

    def interrupt(folder: Path) -> None:
        waited.append(folder)
        raise Interrupted

    def train_meanwhile(*_: object) -> None:
        with pytest.raises(Interrupted), lock_runs(tmp_path, plan, fresh=True, wait=interrupt):
            pass

    monkeypatch.setattr(cli_train, "_train", train_meanwhile)
    carry_out(plan, tmp_path, "json", fresh=False)
    assert waited == [min(run_folder(tmp_path, plan, run) for run in plan.runs)]
    assert json.loads(capsys.readouterr().out)["interrupted"]
    assert not (tmp_path / "checkpoints").exists()


def limited(command: Sequence[str], num_bytes: int) -> Result:
    """The command where no file can have more bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        return CliRunner().invoke(app, command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("num_bytes", "name"),
    [(3_000_000, "steps/000003"), (1_000_000, "final"), (700, "run.json")],
    ids=["snapshot", "checkpoint", "first file"],
)
def test_a_full_disk_is_said_and_the_same_command_goes_on(
    experiment: Path, tmp_path: Path, num_bytes: int, name: str
) -> None:
    assert train(experiment, tmp_path / "whole").exit_code == 0  # and packs the text
    options = [*SMALL, "--set", f"training.checkpoint_every={3 if 'steps' in name else 100}"]
    command = words(experiment, tmp_path / "full", *options)
    failed = limited(command, num_bytes)
    assert failed.exit_code == 1, failed.output
    assert isinstance(failed.exception, SystemExit)  # and no traceback
    assert f"retnet-300k-seed0/{name}: " in failed.stderr
    assert "File too large" in failed.stderr
    left = {path.name for path in (tmp_path / "full").rglob("*") if path.name.startswith(".")}
    assert left == set()  # nothing half written
    assert CliRunner().invoke(app, command).exit_code == 0
    models = [
        (tmp_path / out / "checkpoints/tiny/cpu/retnet-300k-seed0/final/model.safetensors").read_bytes()
        for out in ("whole", "full")
    ]
    assert models[0] == models[1]


@pytest.mark.parametrize("options", [["--fresh"], []])
def test_a_full_disk_advises_to_continue_without_fresh(
    experiment: Path, tmp_path: Path, options: list[str]
) -> None:
    failed = limited(words(experiment, tmp_path, *SMALL, *options), 700)
    assert failed.exit_code == 1, failed.output
    assert ("Leave out --fresh" in failed.stderr) == bool(options)
