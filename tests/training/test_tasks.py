"""Training on generated examples, from the plan to the record."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retbench.config import synthetic
from retbench.data.batches import IGNORED, Examples
from retbench.errors import ConfigError
from retbench.evaluation.answers import answer_shares
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.planning.models import find_models
from retbench.records.store import read_records
from retbench.training import loop
from retbench.training.engine import GeneratedExamples, train_all
from retbench.training.events import CurvePoint, TrainingResult
from retbench.training.loop import Stopped, Trainer
from retbench.training.optimization import mean_loss, summed_loss
from retbench.training.plan import TrainingPlan
from retbench.training.planning import make_training_plan
from tests.training.conftest import read_curve

TASK = """\
title = "Tiny"
source = "none; made for tests"
expect = "It runs."

[models.retnet]
architecture = "retnet"
chunk_size = 8

[models.transformer]
architecture = "transformer"

[profiles.cpu]
size = "25k"
threads = 1
[profiles.cpu.training]
sizes = ["25k"]
seq_len = 16
batch_size = 4
num_tokens = 768
recipe = "recall"
learning_rates = [0.003]
validation_tokens = 160
validate_every = 4
checkpoint_every = 3
[profiles.cpu.training.task]
name = "mqar"
vocab_size = 32
num_pairs = [2, 4]
[profiles.cpu.workloads.decode]
context_len = [16]
"""
"""12 steps of 4 examples."""

PlanOf = Callable[..., TrainingPlan]


@pytest.fixture
def plan_of(tmp_path: Path) -> PlanOf:
    path = tmp_path / "tiny.toml"
    path.write_text(TASK, encoding="utf-8")
    return lambda *overrides: make_training_plan(str(path), "cpu", "cpu", overrides)


def train(plan: TrainingPlan, out: Path) -> TrainingResult:
    return train_all(plan, GeneratedExamples(), out, notify=lambda _: None, stop=lambda: False)


def examples_of(plan: TrainingPlan) -> Examples:
    return GeneratedExamples().validation_examples(plan.spec)


def model_of(plan: TrainingPlan, number: int = 0) -> Decoder:
    run = plan.final_runs[number]
    return build_model(
        plan.config(run), dtype=torch.float32, device="cpu", seed=0, backend=plan.entry(run).backend
    )


def test_models_have_the_vocabulary_of_the_task(plan_of: PlanOf) -> None:
    assert {config.vocab_size for config in plan_of().models.values()} == {32}


def test_the_loss_and_its_gradients_are_those_of_the_answers_among_all_logits(plan_of: PlanOf) -> None:
    plan = plan_of()
    model, examples = model_of(plan), examples_of(plan)
    found: list[list[Tensor]] = []
    whole = torch.nn.functional.cross_entropy(
        model(examples.inputs).flatten(0, 1), examples.targets.flatten(), reduction="sum"
    )
    for loss in (whole, summed_loss(model, examples)):
        model.zero_grad()
        loss.backward()
        found.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    num_answers = int((examples.targets != IGNORED).sum())
    assert num_answers == 5 * 2 + 5 * 4
    assert mean_loss(model, examples, 3) == pytest.approx(whole.item() / num_answers, rel=1e-5)


def test_the_accuracy_counts_an_answer_that_is_highest_in_the_whole_vocabulary(plan_of: PlanOf) -> None:
    plan = plan_of()
    model, examples = model_of(plan), examples_of(plan)
    best = model(examples.inputs).argmax(-1)
    asked = examples.targets != IGNORED
    targets = torch.where(asked, best, IGNORED)
    targets[0, asked[0].nonzero()[0]] += 1
    shares = answer_shares(model, examples._replace(targets=targets), 3)
    assert shares.tolist() == [0.5] + [1.0] * 9


def test_a_run_is_recorded_with_its_accuracy_and_that_it_has_not_learnt(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of()
    result = train(plan, tmp_path)
    records, problems = read_records(tmp_path)
    assert not problems
    assert [record.model.name for record in records] == ["retnet", "transformer"]
    for record, run in zip(records, result.runs, strict=True):
        curve = read_curve(run.folder / "curve.csv")
        assert [point.step for point in curve] == [4, 8, 12]
        assert record.status == "ok"
        assert record.series["validation_acc"].y == tuple(point.validation_acc for point in curve)
        assert record.metrics["validation_acc"].value == run.validation_acc == curve[-1].validation_acc
        assert record.absent["learnt_step"].startswith("not learnt")
        assert record.settings["task"]["num_pairs"] == [2, 4]
        assert "tokenizer" not in record.settings
        assert (record.point.task, record.model.weights and record.model.weights.corpus) == ("mqar", "mqar")
        # Before anything is learnt a model guesses among all tokens.
        assert curve[0].validation_loss_nats == pytest.approx(math.log(32), abs=0.5)


def test_an_accuracy_ends_a_run_and_what_it_learned_from_is_counted(plan_of: PlanOf, tmp_path: Path) -> None:
    """A tiny accuracy: the first point of the curve with a right answer for each number of pairs ends the run."""
    plan = plan_of(
        "training.task.stop_accuracy=1e-9", "training.learning_rates=[0.03]", "training.num_tokens=32000"
    )
    result = train(plan, tmp_path)
    for run in result.runs:
        curve = read_curve(run.folder / "curve.csv")
        steps = curve[-1].step
        assert steps < 500
        assert curve[-1].validation_acc
        assert run.num_tokens == steps * 64
        trained = [
            one
            for one in find_models(plan.experiment, "cpu", tmp_path)
            if one.model_name == run.run.model_name
        ]
        assert [one.trained_weights.info.num_tokens for one in trained] == [steps * 64]
    assert train(plan, tmp_path).runs == tuple(replace(run, on_disk=True) for run in result.runs)


def test_a_run_that_an_accuracy_ends_is_not_one_that_is_scored_at_other_steps(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    """`validate_every` decides at which step such a run ends; without an accuracy it changes no weight."""
    ends, other = "training.task.stop_accuracy=1.0", "training.validate_every=5"
    train(plan_of(ends), tmp_path / "ends")
    with pytest.raises(ConfigError, match="validate_every: 4 on disk, 5 asked for"):
        train(plan_of(ends, other), tmp_path / "ends")
    train(plan_of(ends, "training.validate_every=20"), tmp_path / "once")
    assert all(
        run.on_disk for run in train(plan_of(ends, "training.validate_every=12"), tmp_path / "once").runs
    )
    train(plan_of(), tmp_path / "whole")
    assert all(run.on_disk for run in train(plan_of(other), tmp_path / "whole").runs)


def test_the_step_at_which_a_task_is_learnt_is_recorded(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "LEARNT_RATIO", 0.0)
    train(plan_of(), tmp_path)
    records = read_records(tmp_path)[0]
    assert len(records) == 2
    for record in records:
        assert record.metrics["learnt_step"].value == 4
        assert "learnt_step" not in record.absent


LENGTHS = "training.task={name='length_recall', num_selected=2, stop_accuracy=0.9}"


def test_the_tasks_of_length_recall_are_trained_in_turn_at_one_length(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of(LENGTHS)
    assert (train(plan, tmp_path).runs[0].status, examples_of(plan).inputs.shape) == ("ok", (10, 16))
    records = read_records(tmp_path)[0]
    assert len(records) == 2
    for record in records:
        assert record.settings["task"]["tasks"] == ["copy", "induction", "selective_copy"]
        assert record.absent["learnt_step"].endswith("guessing has 0.038")
    found = find_models(plan.experiment, "cpu", tmp_path)
    assert [one.trained_weights.context_len for one in found] == [16, 16]
    assert {one.model.vocab_size for one in found} == {30}


@pytest.mark.parametrize(("of_the_last_kind", "steps"), [(0.5, 12), (0.9, 4)])
def test_a_run_ends_when_every_kind_of_example_is_answered(
    plan_of: PlanOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_the_last_kind: float,
    steps: int,
) -> None:
    """The answers are made up: all of two kinds are right, and a share of those of the third."""
    shares = torch.tensor([1.0, 1.0, of_the_last_kind], dtype=torch.float64).repeat(4)[:10]
    monkeypatch.setattr(loop, "answer_shares", lambda *_: shares)
    run = train(plan_of(LENGTHS), tmp_path).runs[0]
    assert run.num_tokens == steps * 64


@pytest.mark.parametrize(("num_pairs", "least"), [((2,), 1.0), ((4,), 0.5), ((4, 8), 0.375)])
def test_a_task_is_learnt_at_twice_the_accuracy_of_guessing_among_the_values(
    num_pairs: tuple[int, ...], least: float
) -> None:
    task = synthetic.MqarTask(name="mqar", num_pairs=num_pairs)
    assert task.is_learnt(least)
    assert not task.is_learnt(least - 1e-9)


def test_an_interrupted_run_continues_as_if_it_had_not_been(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of()

    def trainer_in(folder: str) -> Trainer:
        batches = GeneratedExamples().batches(plan.spec, 0)
        return Trainer(
            plan, plan.final_runs[0], batches, examples_of(plan), tmp_path / folder, lambda _: None
        )

    def curve_of(trainer: Trainer) -> list[CurvePoint]:
        trainer.train(lambda: False, lambda *_: None)
        return [replace(point, tokens_per_s=0.0) for point in trainer.state.curve]

    stopped = trainer_in("stopped")
    with pytest.raises(Stopped):
        stopped.train(lambda: stopped.state.step == 6, lambda *_: None)
    assert curve_of(trainer_in("stopped")) == curve_of(trainer_in("whole"))


@pytest.mark.slow
def test_attention_solves_short_examples(plan_of: PlanOf, tmp_path: Path) -> None:
    """At 100K it took 300 steps of 128 examples. A guess among the values of an example is right in 37.5 %."""
    plan = plan_of(
        'training.sizes=["100k"]',
        "training.task.vocab_size=64",
        "training.task.stop_accuracy=0.99",
        "training.batch_size=128",
        "training.num_tokens=8_192_000",
        "training.learning_rates=[0.006]",
        "training.validation_tokens=8192",
        "training.validate_every=100",
    )
    only = replace(
        plan, models={key: config for key, config in plan.models.items() if key[0] == "transformer"}
    )
    (run,) = train(only, tmp_path).runs
    assert run.validation_acc is not None
    assert run.validation_acc >= 0.99
    assert run.num_tokens < 4_000_000
    (record,) = read_records(tmp_path)[0]
    assert "learnt_step" in record.metrics


def test_the_settings_of_the_task_determine_a_run(plan_of: PlanOf) -> None:
    plan = plan_of()
    run = plan.final_runs[0]
    text = json.dumps(plan.determined_by(run))
    assert "tokenizer" not in text
    for item in (
        "task.vocab_size=64",
        "task.num_pairs=[2]",
        "task.random_filler=true",
        "task.stop_accuracy=0.5",
    ):
        other = plan_of(f"training.{item}")
        assert other.fingerprint(other.final_runs[0]) != plan.fingerprint(run)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("corpus='python'", "both a table 'task' and the field 'corpus'"),
        ("task.num_pairs=[5]", "5 pairs and a question for each take 20 tokens, and seq_len is 16"),
        ("task.num_pairs=[1]", "num_pairs"),
        ("task.num_pairs=[2, 2]", "stands in it twice"),
        ("seq_len=17", "seq_len is 17"),
        ("task.vocab_size=8", "4 pairs need as many keys, and vocab_size 8 has 3"),
        ("task.name='copy'", "known are 'mqar', 'length_recall'"),
        ("task={name='length_recall', num_selected=9}", "9 symbols and their copy take 18 tokens"),
        ("task={name='length_recall', tasks=['copying']}", "'copy', 'induction' or 'selective_copy'"),
        ("task.pairs=[2]", "no field 'pairs'"),
        ("validation_tokens=16", "an example of each kind takes 32"),
    ],
)
def test_a_task_that_cannot_be_trained_on_is_refused(plan_of: PlanOf, item: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        plan_of(f"training.{item}")
