"""Shards: together the whole plan, apart nothing twice, and no pair of models in two of them."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from report.synthetic_records import Maker, write_results
from retbench.cli import app
from retbench.config.experiment_files import list_experiments, load_experiment
from retbench.errors import ConfigError
from retbench.planning.cells import Cell, Weights, expand
from retbench.planning.plan import Plan, make_plan
from retbench.planning.shards import Shard, count_parts, unit_of
from retbench.records.record import Ceilings, WeightsInfo
from retbench.running import estimates
from retbench.training.planning import make_training_plan
from retbench.workloads.workload import is_cost

TINY = ("--profile", "smoke", "--device", "cpu", "--dry-run")


def make(path: Path, *overrides: str) -> Plan:
    return make_plan(str(path), profile="smoke", device="cpu", overrides=overrides)


def parts_of(plan: Plan, count: int) -> list[Plan]:
    parts = [plan.part(Shard(number, count)) for number in range(1, count + 1)]
    return [part for part in parts if part is not None]


def quality_cells(cell: Cell, seeds: list[int], tasks: list[str]) -> list[Cell]:
    """Cells of two trained models with each seed on each task."""
    found = []
    for model, seed, task in product(("retnet", "transformer"), seeds, tasks):
        weights = Weights(
            path=Path("x"), info=WeightsInfo(source="a/b", fingerprint="f", format="retbench", seed=seed)
        )
        under_test = cell.under_test.model_copy(update={"model_name": model, "weights": weights})
        point = cell.point.model_copy(update={"task": task})
        fields = {"under_test": under_test, "point": point, "workload": "zeroshot"}
        found.append(cell.model_copy(update=fields))
    return found


@given(
    batch_sizes=st.lists(st.integers(1, 64), min_size=1, max_size=6, unique=True),
    lengths=st.lists(st.integers(2, 512), min_size=1, max_size=4, unique=True),
    seeds=st.lists(st.integers(0, 9), max_size=3, unique=True),
    count=st.integers(1, 12),
)
def test_shards_are_disjoint_their_union_is_the_plan_and_pairs_stay_together(
    batch_sizes: list[int], lengths: list[int], seeds: list[int], count: int
) -> None:
    plan = make(
        Path("latency"),
        f"workloads.decode.batch_size={batch_sizes}",
        f"workloads.decode.context_len={lengths}",
    )
    quality = quality_cells(plan.cells[0], seeds, ["piqa", "copa"])
    plan = replace(plan, cells=(*plan.cells, *quality))
    parts = parts_of(plan, count)
    found = [cell.cell_id for part in parts for cell in part.cells]
    assert len(found) == len(set(found))
    assert set(found) == {cell.cell_id for cell in plan.cells}
    assert [part.command for part in parts] == [part.command for part in parts_of(plan, count)]
    home = {cell.cell_id: number for number, part in enumerate(parts) for cell in part.cells}
    for one, other in product(plan.cells, repeat=2):
        at_one_batch = one.point.batch_size == other.point.batch_size
        seed = [cell.under_test.weights and cell.under_test.weights.info.seed for cell in (one, other)]
        same_score = (seed[0], one.point.task) == (seed[1], other.point.task)
        if is_cost(one.workload) != is_cost(other.workload):
            continue
        if at_one_batch if is_cost(one.workload) else same_score:
            assert home[one.cell_id] == home[other.cell_id]
    sizes = sorted(len({unit_of(cell) for cell in part.cells}) for part in parts)
    assert sizes[-1] - sizes[0] <= 1


@pytest.mark.parametrize("text", ["3/2", "0/2", "1/0", "-1/2", "1", "1/2/3", "a/b", "", "1 / 2", "1/99999"])
def test_an_impossible_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a shard\. Give NUMBER/COUNT.*such as 2/8"):
        Shard.parse(text)


def test_two_folders_copied_together_give_the_table_of_one_run(tmp_path: Path) -> None:
    records = Maker().latency([1024, 4096], [1, 4, 8])
    write_results(tmp_path / "whole", records)
    for number in (1, 2):
        mine = Shard(number, 2).part_of(records, lambda record: record.point.batch_size)
        own = [record.model_copy(update={"run_id": f"shard-{number}"}) for record in mine]
        assert 0 < len(own) < len(records)
        shutil.copytree(
            write_results(tmp_path / f"shard{number}", own), tmp_path / "merged", dirs_exist_ok=True
        )
    tables = [
        CliRunner().invoke(app, ["table", "latency", "--results", str(tmp_path / name)]).stdout
        for name in ("whole", "merged")
    ]
    assert "| retnet | 8 | 4K |" in tables[0]
    assert tables[0] == tables[1]


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output


def test_a_dry_run_shows_the_shard(
    tiny_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = Ceilings(read_bandwidth_bytes_per_s=1e10, matmul_flops_per_s=1e11)
    monkeypatch.setattr(estimates, "_measure_ceilings", lambda _plan: (rates, {}))
    shared = (
        "run",
        str(tiny_experiment),
        *TINY,
        "--set",
        "workloads.decode.batch_size=[1,4]",
        "--out",
        str(tmp_path),
    )
    code, output = run(*shared, "--shard", "2/2", "--json")
    shown = json.loads(output)
    assert code == 0
    assert {cell["batch_size"] for cell in shown["cells"]} == {4}
    assert {cell["model"] for cell in shown["cells"]} == {"retnet", "transformer"}
    assert shown["note"].startswith("shard 2/2: 4 of 8 cells")
    assert shown["command"].endswith("--shard 2/2")


def test_the_parts_of_an_experiment_file_are_those_of_its_plan() -> None:
    known = set()
    for name in list_experiments():
        experiment = load_experiment(name)
        for profile in experiment.profiles:
            count = count_parts(experiment, profile, training=False)
            if count is not None and all(model.checkpoint is None for model in experiment.models.values()):
                settings = make(Path("latency")).settings
                assert count == len({unit_of(cell) for cell in expand(experiment, profile, settings)})
                known.add(name)
    assert known == {"kin", "latency", "memory", "throughput", "training_cost"}


@pytest.mark.parametrize(
    ("rates", "seeds", "count"), [("[1e-3, 1e-2]", "[0, 1, 2]", 2), ("[1e-3]", "[0, 1, 2]", 3)]
)
def test_the_parts_of_a_training_are_models_of_a_grid_else_seeds(rates: str, seeds: str, count: int) -> None:
    overrides = (f"training.learning_rates={rates}", f"training.seeds={seeds}")
    plan = make_training_plan("quality", "smoke", "cpu", overrides)
    assert count_parts(plan.experiment, "smoke", training=True) == count
    assert len(set(map(plan.unit_of, plan.runs))) == count


@pytest.mark.parametrize("words", [("--dry-run",), ("--json",), ()])
def test_a_shard_without_cells_says_so(tiny_experiment: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, output = run(
        "run", str(tiny_experiment), *TINY[:4], "--shard", "2/2", "--out", str(tmp_path / "out"), *words
    )
    assert code == 0
    assert "hard 2/2 has no cells: the plan has 1 part, by size and batch size" in output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_an_impossible_shard_is_refused_on_the_command_line(tiny_experiment: Path) -> None:
    for command in ("run", "train"):
        code, output = run(command, str(tiny_experiment), *TINY, "--shard", "3/2")
        assert code == 2
        assert "--shard '3/2' is not a shard." in output
