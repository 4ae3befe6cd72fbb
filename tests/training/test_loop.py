"""A run compared with a plain loop written from the recipe, and with interrupted and other variants of itself."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retbench.architectures.configs import ModelConfig
from retbench.data.batches import Batches, next_tokens
from retbench.errors import DivergedError, UnsupportedError
from retbench.files import checksum
from retbench.models.build import build_model
from retbench.ops import attention, kernels
from retbench.ops.linear import RowProducts
from retbench.ops.linear_operator import linear_chunkwise
from retbench.training.events import CurvePoint, TrainingEvent
from retbench.training.loop import Stopped, Trainer, write_curve
from retbench.training.optimization import mean_loss, validation_rows
from retbench.training.plan import TrainingPlan
from retbench.training.planning import make_training_plan
from tests.training.conftest import PlanOf, read_curve, text_of

GENTLE = "training.learning_rates=[0.0003]"
"""At the rate of the other tests a rounding error grows a hundredfold in twelve steps."""


def never() -> bool:
    return False


def trainer_of(
    plan: TrainingPlan, folder: Path, number: int = 0, events: list[TrainingEvent] | None = None
) -> Trainer:
    text, spec, run = text_of(plan), plan.spec, plan.final_runs[number]
    batches, validation = text.batches(spec, run.seed), text.validation_examples(spec)
    notify = (lambda _: None) if events is None else events.append
    return Trainer(plan, run, batches, validation, folder, notify)


def train(plan: TrainingPlan, folder: Path, number: int = 0) -> Trainer:
    trainer = trainer_of(plan, folder, number)
    trainer.train(never, lambda *_: None)
    return trainer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in trainer.model.named_parameters()}


def test_a_run_starts_from_the_weights_that_its_experiment_asks_for(tmp_path: Path) -> None:
    for initialisation in ("plain", "published"):
        override = f"training.initialisation={initialisation}"
        plan = make_training_plan("kin_quality", "smoke", "cpu", (override,))
        number = [run.model_name for run in plan.final_runs].index("rwkv6")
        out_proj = trainer_of(plan, tmp_path / initialisation, number).model.mixers[0].out_proj
        assert bool(out_proj.weight.any()) == (initialisation == "plain")


def plain_training(plan: TrainingPlan, number: int) -> tuple[dict[str, Tensor], list[float]]:
    """The run with AdamW, clipping and schedule written out; its model is the same, tested elsewhere."""
    run, spec, recipe = plan.final_runs[number], plan.spec, plan.recipe
    entry = plan.entry(run)
    model = build_model(
        plan.config(run), dtype=torch.float32, device="cpu", seed=0, backend=entry.backend, chunk_size=32
    )
    batches = Batches(text_of(plan).train, batch_size=spec.batch_size, seq_len=spec.seq_len, seed=run.seed)
    first = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    second = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    warmup = min(375, int(0.1 * run.num_steps))
    losses = []
    for step in range(run.num_steps):
        rows = batches.batch(step)
        model.zero_grad()
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())
        norm = math.sqrt(sum(float(w.grad.square().sum()) for w in model.parameters() if w.grad is not None))
        scale = min(1.0, recipe.grad_clip / norm)
        rate = 0.0003 * (
            (step + 1) / warmup if step < warmup else (run.num_steps - step) / (run.num_steps - warmup)
        )
        with torch.no_grad():
            for name, weight in model.named_parameters():
                assert weight.grad is not None
                gradient = weight.grad * scale
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.98 * second[name] + 0.02 * gradient**2
                if weight.dim() == 2:
                    weight *= 1 - rate * 0.05
                mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.98 ** (step + 1))
                weight -= rate * mean / (square.sqrt() + 1e-8)
    return {name: weight.detach() for name, weight in model.named_parameters()}, losses


def test_a_training_makes_its_gpu_the_current_one(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of other packages run on the current device, which is the first one until it is set."""

    class CurrentError(Exception):
        pass

    def stop(device: torch.device) -> None:
        raise CurrentError(str(device))

    monkeypatch.setattr("retbench.measure.environment.use_device", stop)
    with pytest.raises(CurrentError, match="cuda:1"):
        trainer_of(replace(plan_of(), device="cuda:1"), tmp_path)


@pytest.mark.parametrize(("autocast", "accepted"), [("bfloat16", True), ("none", False)])
def test_a_kernel_for_16_bits_trains_float32_weights_under_autocast_only(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autocast: str, accepted: bool
) -> None:
    """The kernel is replaced: it records the dtype of its inputs, and needs no GPU."""
    entered: set[torch.dtype] = set()

    def kernel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> object:
        entered.update((q.dtype, k.dtype, v.dtype))
        return linear_chunkwise(q, k, v, log_decay, state)

    def missing_reason(_device: torch.device, dtype: torch.dtype) -> str | None:
        return None if dtype == torch.bfloat16 else "it takes bfloat16"

    monkeypatch.setattr(kernels, "retention_fla", kernel)
    monkeypatch.setattr(kernels, "missing_reason", missing_reason)
    plan = plan_of("models.retnet.backend=fla", f"training.autocast={autocast}")
    number = next(n for n, run in enumerate(plan.final_runs) if plan.entry(run).backend == "fla")
    if not accepted:
        with pytest.raises(UnsupportedError, match="it takes bfloat16"):
            trainer_of(plan, tmp_path, number)
        return
    train(plan, tmp_path, number)
    assert entered == {torch.bfloat16}


@pytest.mark.parametrize("number", [0, 1])
def test_training_is_what_the_recipe_says(plan_of: PlanOf, tmp_path: Path, number: int) -> None:
    plan = plan_of("training.validate_every=1", GENTLE)
    trained = train(plan, tmp_path, number)
    expected, losses = plain_training(plan, number)
    curve = [point.train_loss_nats for point in trained.state.curve]
    assert curve == pytest.approx(losses, rel=2e-4)
    for name, weight in weights(trained).items():
        moved = (expected[name] - weight).norm() / expected[name].norm()
        assert moved < 0.01, name


def with_one_layer(config: ModelConfig) -> ModelConfig:
    """The same model with one layer: compiling takes seconds for each."""
    return config.model_copy(update={"blocks": (config.blocks[0].model_copy(update={"count": 1}),)})


def test_a_compiled_run_learns_as_an_eager_one(plan_of: PlanOf, tmp_path: Path) -> None:
    """Compilation stays outside the clock: the first step takes no longer than a hundred of the others."""
    settings = (GENTLE, "training.validate_every=1", 'training.sizes=["25k"]')
    plans = {on: plan_of(f"training.compile={on}", *settings) for on in ("true", "false")}
    compiled, eager = (
        train(
            replace(plan, models={key: with_one_layer(config) for key, config in plan.models.items()}),
            tmp_path / on,
            1,
        )
        for on, plan in plans.items()
    )
    points, expected = compiled.state.curve, eager.state.curve
    assert [p.train_loss_nats for p in points] == pytest.approx(
        [p.train_loss_nats for p in expected], rel=1e-4
    )
    assert points[0].tokens_per_s > 0.01 * points[-1].tokens_per_s


@pytest.mark.slow
def test_a_compiled_run_notes_its_kernels_in_the_dtype_of_its_steps(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some kernels of a GPU take no float32, and torch chooses among its own by the dtype."""
    noted: list[torch.dtype] = []

    def note(name: str, q: Tensor, k: Tensor, v: Tensor) -> str:
        noted.extend({q.dtype, k.dtype, v.dtype})
        return name

    monkeypatch.setattr(attention, "executed_kernel", note)
    plan = plan_of("training.compile=true", "training.autocast=bfloat16", 'training.sizes=["25k"]')
    one_layer = {key: with_one_layer(config) for key, config in plan.models.items()}
    train(replace(plan, models=one_layer), tmp_path, 1)
    assert noted == [torch.bfloat16]


def test_no_products_are_timed_for_a_run_which_takes_no_decode_steps(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retbench.models.build.row_products", lambda *_: pytest.fail("products are timed"))
    assert trainer_of(plan, tmp_path).model.weight_product == RowProducts().description


def test_a_compiled_run_is_another_run(plan_of: PlanOf) -> None:
    compiled, eager = plan_of("training.compile=true"), plan_of()
    assert compiled.fingerprint(compiled.runs[0]) != eager.fingerprint(eager.runs[0])


def test_the_same_command_gives_the_same_bits(plan: TrainingPlan, tmp_path: Path) -> None:
    first, second = (weights(train(plan, tmp_path / name)) for name in ("a", "b"))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.parametrize("number", [0, 1])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    plan: TrainingPlan, tmp_path: Path, number: int
) -> None:
    whole = train(plan, tmp_path / "whole", number)
    stops = iter([False] * 5 + [True] + [False] * 20)
    with pytest.raises(Stopped):
        trainer_of(plan, tmp_path / "stopped", number).train(lambda: next(stops), lambda *_: None)
    resumed = trainer_of(plan, tmp_path / "stopped", number)
    assert resumed.state.step == 5
    resumed.train(never, lambda *_: None)
    assert resumed.state.num_processes == 2
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())
    losses = [
        [(p.train_loss_nats, p.validation_loss_nats) for p in each.state.curve] for each in (whole, resumed)
    ]
    assert losses[0] == losses[1]


def test_a_damaged_snapshot_costs_steps_and_no_bits(plan: TrainingPlan, tmp_path: Path) -> None:
    whole = weights(train(plan, tmp_path / "whole"))
    folder = tmp_path / "damaged"
    stops = iter([False] * 8 + [True])
    with pytest.raises(Stopped):
        trainer_of(plan, folder).train(lambda: next(stops), lambda *_: None)
    damaged = folder / "steps" / "000008" / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    events: list[TrainingEvent] = []
    resumed = trainer_of(plan, folder, events=events)
    assert resumed.state.step == 6
    assert "000008 is damaged" in events[0].text  # type: ignore[union-attr]
    resumed.train(never, lambda *_: None)
    assert all(torch.equal(weight, whole[name]) for name, weight in weights(resumed).items())


def test_micro_batches_add_up(plan_of: PlanOf, tmp_path: Path) -> None:
    whole = weights(train(plan_of(GENTLE), tmp_path / "whole"))
    parts = weights(train(plan_of(GENTLE, "training.micro_batch_size=1"), tmp_path / "parts"))
    for name, weight in whole.items():
        assert (weight - parts[name]).norm() / weight.norm() < 1e-3


def test_activation_checkpointing_changes_no_bit(plan_of: PlanOf, tmp_path: Path) -> None:
    kept = weights(train(plan_of(), tmp_path / "kept"))
    again = weights(train(plan_of("activation_checkpointing=true"), tmp_path / "again"))
    assert all(torch.equal(weight, again[name]) for name, weight in kept.items())


@pytest.mark.parametrize("number", [0, 1])
def test_bfloat16_is_near(plan_of: PlanOf, tmp_path: Path, number: int) -> None:
    wide = train(plan_of(GENTLE), tmp_path / "wide", number)
    narrow = train(plan_of(GENTLE, "training.autocast=bfloat16"), tmp_path / "narrow", number)
    assert {weight.dtype for weight in weights(narrow).values()} == {torch.float32}
    losses = [each.state.curve[-1].validation_loss_nats for each in (wide, narrow)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_a_step_that_diverges_leaves_the_weights_of_the_one_before(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    trainer = trainer_of(plan, tmp_path)
    before: dict[str, Tensor] = {}

    def spoil(step: int, *_: float) -> None:
        if step == 7:
            with torch.no_grad():
                trainer.model.norm.weight[0] = math.nan
            before.update({name: weight.clone() for name, weight in weights(trainer).items()})

    with pytest.raises(DivergedError, match="step 8: the training loss is nan"):
        trainer.train(never, spoil)
    after = weights(trainer)
    assert all(torch.equal(weight, after[name]) for name, weight in before.items() if name != "norm.weight")
    assert [path.name for path in sorted((tmp_path / "steps").iterdir())] == ["000003", "000006"]


@pytest.mark.parametrize("num_tokens", [10, 96, 100, 10**9])
def test_validation_scores_each_token_once(plan: TrainingPlan, num_tokens: int) -> None:
    tokens = text_of(plan).validation
    rows = validation_rows(tokens, num_tokens, seq_len=48)
    scored = rows[:, 1:].flatten()
    length = rows.shape[1] - 1
    assert len(scored) == min(num_tokens, len(tokens) - 1) // length * length
    assert scored.tolist() == tokens.tokens[1 : len(scored) + 1].tolist()


def test_the_validation_loss_is_that_of_each_token(plan: TrainingPlan, tmp_path: Path) -> None:
    trainer = trainer_of(plan, tmp_path)
    rows = validation_rows(text_of(plan).validation, 192, 48)
    with torch.no_grad():
        logits = trainer.model(rows[:, :-1]).double().log_softmax(-1)
    expected = -logits.gather(-1, rows[:, 1:, None]).mean().item()
    micro: Callable[[int], float] = lambda size: mean_loss(trainer.model, next_tokens(rows), size)  # noqa: E731
    assert micro(1) == pytest.approx(expected, rel=1e-6)
    assert micro(3) == pytest.approx(expected, rel=1e-6)


def test_the_curve_is_on_disk_as_it_grows(plan: TrainingPlan, tmp_path: Path) -> None:
    sums = []
    trainer_of(plan, tmp_path).train(
        never, lambda step, *_: sums.append(checksum(tmp_path / "curve.csv")) if step in (5, 9) else None
    )
    assert len(set(sums)) == 2


numbers = st.floats(allow_nan=False)
points = st.builds(
    CurvePoint,
    step=st.integers(0),
    num_tokens=st.integers(0),
    **dict.fromkeys(
        ("train_loss_nats", "validation_loss_nats", "learning_rate", "grad_norm", "tokens_per_s"), numbers
    ),
)


@given(st.lists(points))
def test_a_curve_reads_back_exactly(curve: list[CurvePoint]) -> None:
    with TemporaryDirectory() as folder:
        write_curve(Path(folder) / "curve.csv", curve)
        assert read_curve(Path(folder) / "curve.csv") == curve
        assert [path.name for path in Path(folder).iterdir()] == ["curve.csv"]
