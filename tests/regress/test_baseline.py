"""Baselines: a window of runs that later ones are compared with, and every way in which one can be wrong."""

import json
import math
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from regress.test_compare import Change, Rewrite, failing, steady, without, write
from report.synthetic_records import CPU, Machine
from retbench.cli import app
from retbench.cli.baseline import accept
from retbench.records.record import Record
from retbench.records.store import append_record
from retbench.regress import compare
from retbench.regress.baseline import MAX_RUNS, Baseline, content_hash, read_baseline
from retbench.regress.machine_independent import Quantity, write_quantities

NAME = "epyc-9b14-2c/latency-cpu.json"


def shifted(day: int, factor: float = 1.0) -> Change:
    """A session that is up to 2 % off in all that it measures."""
    return lambda arguments: steady(arguments, factor * (1 + 0.02 * math.sin(5 * day)))


def run_of(
    folder: Path,
    day: int,
    factor: float = 1.0,
    machine: Machine = CPU,
    rewrite: Rewrite = lambda record: record,
) -> Path:
    later = replace(machine, started=machine.started + timedelta(days=day))
    return write(folder / f"day{day}-{factor}.jsonl", later, shifted(day, factor), rewrite)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def save(folder: Path, *runs: Path) -> Result:
    return call("baseline", "save", *runs, "--folder", folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nine runs, each a day later and a little off."""
    folder = tmp_path_factory.mktemp("runs")
    return [run_of(folder, day) for day in range(9)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, runs: list[Path]) -> Path:
    """A folder with a baseline of eight runs."""
    folder = tmp_path_factory.mktemp("saved")
    assert save(folder, *runs[:8]).exit_code == 0
    return folder


@pytest.fixture
def baseline(tmp_path: Path, saved: Path) -> Path:
    """A copy of that baseline, which a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "baselines")) / NAME


def test_a_run_like_those_before_does_not_alarm(baseline: Path, runs: list[Path]) -> None:
    done = call("compare", baseline, runs[8])
    assert done.exit_code == 0
    assert "regressed" not in done.stdout
    assert "one run against 8 accepted runs" in done.stdout


def test_a_run_that_is_slower_than_their_spread_fails(baseline: Path, tmp_path: Path) -> None:
    done = call("compare", baseline, run_of(tmp_path, 9, 1.5))
    assert done.exit_code == 1
    assert "decode of retnet slower at every length from 1K to 32K" in done.stdout


@pytest.mark.parametrize(
    ("session", "model", "factor"),
    [(1.0, "retnet", 1.05), (0.95, "retnet", 1.05), (1.03, "transformer", 0.95)],
)
def test_a_change_of_the_ratio_is_reported_and_not_whose_it_is(
    baseline: Path, tmp_path: Path, session: float, model: str, factor: float
) -> None:
    """5 % on one model is within what sessions shift, and far beyond what their ratio does."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        return steady(arguments, session * (factor if arguments["model"].name == model else 1.0))

    later = replace(CPU, started=CPU.started + timedelta(days=9))
    head = write(tmp_path / "head.jsonl", later, change)
    done = call("compare", baseline, head, "--strict")
    assert done.exit_code == 4
    lines = [line for line in done.stdout.splitlines() if "either model may have moved" in line]
    assert all(line.startswith("inconclusive") and "retnet/transformer" in line for line in lines)
    assert len(lines) == 5
    assert save(baseline.parents[1], head).exit_code == 1


def test_fewer_than_eight_runs_decide_nothing(tmp_path: Path, runs: list[Path]) -> None:
    folder = tmp_path / "baselines"
    assert "1 run; 7 more are needed" in save(folder, *runs[:1]).stdout
    done = save(folder, *runs[1:7])
    assert "7 runs; 1 more is needed" in done.stdout
    slow = run_of(tmp_path, 9, 1.5)
    done = call("compare", folder / NAME, slow)
    assert done.exit_code == 0
    assert "a verdict needs 8 runs, and the baseline has 7" in done.stdout
    assert call("compare", folder / NAME, slow, "--strict").exit_code == 4


def test_the_window_keeps_the_latest_runs(baseline: Path, tmp_path: Path) -> None:
    later = [run_of(tmp_path, day) for day in range(10, 8 + MAX_RUNS)]
    assert save(baseline.parents[1], *later).exit_code == 0
    kept = read_baseline(baseline).runs
    assert len(kept) == MAX_RUNS
    assert kept[0].started_at.startswith("2026-01-08")  # six are gone
    assert set(kept[0].points[0].values) == {0, 1, 2, 3, 4}


def test_a_run_of_many_rounds_is_read_back(tmp_path: Path) -> None:
    """Rounds are the keys of an object, and 10 comes before 9 among texts."""

    def many(record: Record) -> Record:
        for number in range(5, 25):
            append_record(path, record.model_copy(update={"round": number}))
        return record

    path = tmp_path / "many.jsonl"
    write(path, CPU, rewrite=many)
    assert save(tmp_path / "baselines", path).exit_code == 0
    found = read_baseline(tmp_path / "baselines" / NAME)
    assert set(found.runs[0].points[0].values) == set(range(25))


def test_fewer_rounds_than_the_runs_of_the_window_decide_nothing_and_do_not_join(
    baseline: Path, tmp_path: Path
) -> None:
    """The spread of runs of five rounds does not predict a run of one."""
    short = run_of(tmp_path, 9, 1.5, rewrite=lambda record: record if record.round == 0 else None)
    done = call("compare", baseline, short, "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, {item["verdict"] for item in report["items"]}) == (0, {"inconclusive"})
    assert {item["note"] for item in report["items"]} == {"1 round, the runs of the baseline have 5"}
    assert {item["num_rounds"] for item in report["items"]} == {1}
    done = save(baseline.parents[1], short)
    assert done.exit_code == 3
    assert "decode of retnet, batch 1, 1K: 1 round, the runs of the baseline have 5" in done.stderr


def test_a_run_of_the_window_is_neither_saved_again_nor_compared_with_it(
    baseline: Path, runs: list[Path]
) -> None:
    for done in (save(baseline.parents[1], runs[3]), call("compare", baseline, runs[3])):
        assert done.exit_code == 2
        assert "already" in done.stderr


def test_a_run_that_has_moved_is_accepted_only_with_a_reason(baseline: Path, tmp_path: Path) -> None:
    before = baseline.read_bytes()
    moved = run_of(tmp_path, 9, 1.5)
    done = save(baseline.parents[1], moved)
    assert done.exit_code == 1
    assert "retbench baseline accept" in done.stderr
    assert baseline.read_bytes() == before
    assert call("baseline", "accept", moved, "--reason", " ", "--folder", baseline.parents[1]).exit_code == 2
    done = call("baseline", "accept", moved, "--reason", "a larger chunk", "--folder", baseline.parents[1])
    assert done.exit_code == 0
    found = read_baseline(baseline)
    assert (len(found.runs), found.reason) == (1, "a larger chunk")


def saving_power(record: Record) -> Record:
    return record.model_copy(update={"environment": {**record.environment, "governor": "powersave"}})


def test_a_run_that_has_moved_with_a_reason_does_not_join(baseline: Path, tmp_path: Path) -> None:
    """A confounder may explain that it has moved, but then it does not predict the next run."""
    moved = run_of(tmp_path, 9, 1.5, rewrite=saving_power)
    assert call("compare", baseline, moved).exit_code == 0
    done = save(baseline.parents[1], moved)
    assert done.exit_code == 1
    assert "may explain a difference: governor" in done.stderr


def test_a_new_window_waits_for_a_save_that_is_under_way(
    baseline: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = baseline.parents[1]
    accepting = Thread(target=accept, args=(runs[8], "new", folder))

    def read(path: Path) -> Baseline:
        found = read_baseline(path)
        if not accepting.ident:
            accepting.start()  # between reading and writing of the save
            accepting.join(timeout=1)
        return found

    monkeypatch.setattr(compare, "read_baseline", read)
    assert save(folder, runs[8]).exit_code == 0
    accepting.join()
    assert read_baseline(baseline).reason == "new"


def clocked(hz: float) -> Rewrite:
    def rewrite(record: Record) -> Record:
        state = {"gpu_state": {"during": {"sm_clock_hz": hz}, "after": {"sm_clock_hz": 0.21e9}}}
        return record.model_copy(update={"environment": {**record.environment, **state}})

    return rewrite


def test_a_clock_unlike_that_of_all_runs_may_explain_a_difference(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, day, rewrite=clocked(1.410e9)) for day in range(8)]
    assert save(tmp_path / "baselines", *runs).exit_code == 0
    path = tmp_path / "baselines" / NAME
    locked = call("compare", path, run_of(tmp_path, 9, 1.5, rewrite=clocked(0.9e9)))
    assert locked.exit_code == 0
    assert "SM clock: 1410 MHz | 900 MHz" in locked.stdout
    assert call("compare", path, run_of(tmp_path, 10, 1.5, rewrite=clocked(1.4e9))).exit_code == 1


def test_show_prints_runs_points_and_spread(baseline: Path) -> None:
    done = call("baseline", "show", baseline.parents[1])
    assert "8 runs" in done.stdout
    assert call("baseline", "show", "--folder", baseline.parents[1]).stdout == done.stdout
    both = call("baseline", "show", baseline, "--folder", baseline.parents[1])
    assert (both.exit_code, "Give one" in both.stderr) == (2, True)
    assert "window begun: first runs" in done.stdout
    assert "decode of retnet, batch 1, 32K" in done.stdout
    data = json.loads(call("baseline", "show", baseline, "--json").stdout)["baselines"][0]
    logs = [math.log(1 + 0.02 * math.sin(5 * day)) for day in range(8)]
    mean = sum(logs) / 8
    expected = math.sqrt(sum((log - mean) ** 2 for log in logs) / 7)
    assert data["points"][0]["log_sd_between_runs"] == pytest.approx(expected, rel=1e-3)
    assert data["points"][0]["value"] == pytest.approx(0.01 * math.exp(mean), rel=2e-3)


def rewrite_file(path: Path, change: dict[str, Any], *, honest: bool = True) -> None:
    """The file with some of its contents changed, and with a hash that fits where `honest`."""
    content = json.loads(path.read_text(encoding="utf-8")) | change
    if honest:
        content.pop("content_sha256")
        content = {"content_sha256": content_hash(content), **content}
    path.write_text(json.dumps(content), encoding="utf-8")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edit_a_value(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["runs"][0]["points"][0]["values"]["0"] *= 2
    rewrite_file(path, content, honest=False)


def put_nan(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["runs"][0]["points"][0]["values"]["0"] = math.nan
    rewrite_file(path, content)


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (truncate, 2, "not a whole JSON file"),
        (edit_a_value, 2, "edited by hand"),
        (put_nan, 2, "finite number"),
        (lambda path: rewrite_file(path, {"schema_version": 99}), 3, "schema_version is 99"),
        (lambda path: rewrite_file(path, {"schema_version": "one"}), 2, "no schema_version"),
        (lambda path: rewrite_file(path, {"runs": []}), 2, "holds no run"),
        (lambda path: rewrite_file(path, {"runs": [{}]}), 2, "field 'runs.0.run_id'"),
        (lambda path: rewrite_file(path, {"colour": "red"}), 2, "field 'colour'"),
        (lambda path: path.write_text("[]", encoding="utf-8"), 2, "not a baseline"),
        (lambda path: path.unlink(), 2, "cannot be read"),
    ],
    ids=[
        "truncated",
        "edited",
        "nan",
        "newer",
        "no-schema",
        "no-runs",
        "no-field",
        "extra",
        "list",
        "absent",
    ],
)
def test_a_wrong_baseline_is_refused_with_what_to_do(
    baseline: Path, runs: list[Path], damage: Any, code: int, words: str
) -> None:
    damage(baseline)
    done = call("compare", baseline, runs[8])
    assert done.exit_code == code
    assert words in done.stderr
    assert any(advice in done.stderr for advice in ("retbench baseline accept", "a newer one"))
    assert "Traceback" not in done.stderr


def test_a_baseline_of_the_other_kind_is_named(baseline: Path, runs: list[Path], tmp_path: Path) -> None:
    exact = tmp_path / "exact-1.json"
    write_quantities(exact, {"parameters": Quantity(kind="count", value=1)}, "2.13.0", "for tests")
    for words in (("compare", exact, runs[8]), ("baseline", "show", exact)):
        done = call(*words)
        assert done.exit_code == 2
        assert "it holds quantities, which `retbench check --baseline` compares with" in done.stderr
    done = call("check", "--baseline", baseline)
    assert done.exit_code == 2
    assert "it holds runs, which `retbench compare` compares with" in done.stderr


def test_a_baseline_of_another_machine_is_not_comparable(baseline: Path, tmp_path: Path) -> None:
    other = run_of(tmp_path, 9, machine=replace(CPU, name="other"))
    done = call("compare", baseline, other)
    assert done.exit_code == 3
    assert "differs: machine: epyc-9b14-2c | other" in done.stdout
    assert save(baseline.parents[1], other).exit_code == 0  # a baseline of its own
    assert (baseline.parents[1] / "other" / "latency-cpu.json").exists()


def test_another_torch_is_refused_where_it_would_join(baseline: Path, tmp_path: Path) -> None:
    done = save(baseline.parents[1], run_of(tmp_path, 9, machine=replace(CPU, torch_version="2.14.0")))
    assert done.exit_code == 3
    assert "versions.torch: 2.13.0 | 2.14.0" in done.stderr


def test_a_point_missing_from_the_run_never_passes(baseline: Path, tmp_path: Path) -> None:
    partial = run_of(tmp_path, 9, rewrite=without("retnet", 32768))
    done = call("compare", baseline, partial)
    assert done.exit_code == 3
    assert "missing: decode of retnet, batch 1, 32K: not measured on the second side" in done.stdout
    assert save(baseline.parents[1], partial).exit_code == 3


def test_a_run_that_failed_in_some_rounds_fails_and_does_not_join(baseline: Path, tmp_path: Path) -> None:
    torn = run_of(tmp_path, 9, rewrite=failing(1, 2, status="oom"))
    done = call("compare", baseline, torn)
    assert done.exit_code == 1
    assert "decode of retnet, batch 1, 32K: failed in 2 of 5 rounds: oom (why) on the second" in done.stdout
    for folder in (baseline.parents[1], tmp_path / "empty"):
        done = save(folder, torn)
        assert done.exit_code == 3
        assert "32K: failed in 2 of 5 rounds: oom (why)" in done.stderr
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(("status", "code"), [("oom", 0), ("failed", 3)])
def test_only_an_out_of_memory_each_time_is_no_failure(tmp_path: Path, status: str, code: int) -> None:
    every = failing(0, 1, 2, 3, 4, status=status)
    first, second, whole = (
        run_of(tmp_path, day, rewrite=rewrite)
        for day, rewrite in ((1, every), (2, every), (3, lambda record: record))
    )
    assert save(tmp_path / "baselines", first).exit_code == code
    assert (
        call("baseline", "accept", first, "--reason", "new", "--folder", tmp_path / "baselines").exit_code
        == 0
    )
    assert call("compare", tmp_path / "baselines" / NAME, second).exit_code == code
    assert save(tmp_path / "baselines", second).exit_code == code
    assert save(tmp_path / "baselines", whole).exit_code == 3  # it has a point more


@pytest.mark.parametrize("command", ["save", "accept"])
def test_an_interrupted_run_begins_no_window(tmp_path: Path, command: str) -> None:
    """It lacks rounds of some points, or points of some models."""

    def up_to(number: int, model: str) -> Rewrite:
        return lambda record: (
            record if (record.round, record.model.name == model) <= (number, False) else None
        )

    words = ["--folder", tmp_path / "new", *(["--reason", "new"] if command == "accept" else [])]
    for day, cut in enumerate((up_to(3, "retnet"), without("retnet", 32768))):
        done = call("baseline", command, run_of(tmp_path, day, rewrite=cut), *words)
        assert done.exit_code == 3
        assert "decode of retnet, batch 1, 32K" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["save", "accept"])
def test_a_run_that_stopped_between_two_rounds_begins_no_window(tmp_path: Path, command: str) -> None:
    """All its points have as many rounds, and fewer than it was last to measure, as far as its records state that."""

    def first_of(planned: tuple[int | None, ...]) -> Rewrite:
        return lambda record: (
            record.model_copy(update={"num_rounds": planned[record.round]}) if record.round < 3 else None
        )

    for day, (planned, code) in enumerate((((5, 5, 5), 3), ((5, 5, 3), 0), ((None, None, None), 0))):
        words = ["--folder", tmp_path / str(day), *(["--reason", "new"] if command == "accept" else [])]
        done = call("baseline", command, run_of(tmp_path, day, rewrite=first_of(planned)), *words)
        assert done.exit_code == code
        assert ("decode of retnet, batch 1, 32K: 3 of 5 rounds" in done.stderr) is (code == 3)


def test_a_value_that_is_not_finite_in_the_run_is_reported_and_missing(
    baseline: Path, runs: list[Path], tmp_path: Path
) -> None:
    lines = runs[8].read_text(encoding="utf-8").splitlines()
    broken = []
    for line in lines:
        record = json.loads(line)
        if (record["model"]["name"], record["point"]["context_len"]) == ("retnet", 32768):
            record["metrics"]["tpot_s"]["value"] = math.nan
        broken.append(json.dumps(record))
    path = tmp_path / "nan.jsonl"
    path.write_text("\n".join(broken) + "\n", encoding="utf-8")
    done = call("compare", baseline, path)
    assert done.exit_code == 3
    assert "finite" in done.stdout
    assert "decode of retnet, batch 1, 32K: not measured on the second side" in done.stdout


def test_runs_of_another_sweep_have_nothing_in_common(baseline: Path, tmp_path: Path) -> None:
    def elsewhere(arguments: dict[str, Any]) -> dict[str, Any]:
        return steady(arguments) | {"experiment": "other"}

    done = call("compare", baseline, write(tmp_path / "other.jsonl", CPU, elsewhere))
    assert done.exit_code == 2
    assert "no point of it" in done.stderr


def test_a_folder_of_two_sweeps_is_no_run(runs: list[Path], tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    write(both / "one.jsonl", CPU)
    write(both / "two.jsonl", CPU, lambda arguments: steady(arguments) | {"experiment": "other"})
    done = save(tmp_path / "baselines", both)
    assert done.exit_code == 2
    assert "latency/cpu, other/cpu" in done.stderr


@pytest.mark.parametrize("command", ["save", "accept"])
def test_records_that_a_run_leaves_out_are_named(runs: list[Path], tmp_path: Path, command: str) -> None:
    words = ["--reason", "new", "--folder", tmp_path / "new"]
    words = words if command == "accept" else words[2:]
    assert call("baseline", command, runs[0], *words).stderr == ""
    both = tmp_path / "both"
    both.mkdir()
    shutil.copy(runs[1], both / "one.jsonl")
    (both / "two.jsonl").write_bytes(runs[2].read_bytes()[:-20])
    done = call("baseline", command, both, *words)
    assert done.exit_code == 0
    assert f"{both / 'two.jsonl'}:" in done.stderr  # the torn line
    assert "measured again" in done.stderr  # the records of one run take the place of the other's


@pytest.mark.parametrize("field", ["machine", "experiment", "profile"])
@pytest.mark.parametrize("leads", ["absolute", "upwards", "too long", "empty"])
@pytest.mark.parametrize("command", ["save", "accept"])
def test_names_of_records_do_not_lead_out_of_the_folder(
    tmp_path: Path, field: str, leads: str, command: str
) -> None:
    victim = tmp_path / "victim" / ("latency-cpu.json" if field == "machine" else "x-cpu.json")
    victim.parent.mkdir()
    victim.write_text("mine", encoding="utf-8")
    folder = tmp_path / "work" / "baselines"
    stem = victim.parent / ("x-cpu" if field == "profile" else "x")
    name = {
        "absolute": str(victim.parent if field == "machine" else stem),
        "upwards": "../../victim" if field == "machine" else f"../../../victim/{stem.name}",
        "too long": "n" * 300,
        "empty": "",
    }[leads]

    def rename(record: Record) -> Record:
        if field == "machine":
            return record.model_copy(update={"environment": {**record.environment, "machine": name}})
        return record.model_copy(update={field: name})

    run = write(tmp_path / "run.jsonl", CPU, rewrite=rename)
    words = ["--reason", "new"] if command == "accept" else []
    done = call("baseline", command, run, *words, "--folder", folder)
    if leads != "empty" or field == "machine":  # an empty experiment or profile is a part of a name
        assert done.exit_code == 2
    assert victim.read_text(encoding="utf-8") == "mine"
    assert {*tmp_path.rglob("*.json")} - {*folder.rglob("*")} == {victim}


def test_no_baseline_is_reported(tmp_path: Path) -> None:
    done = call("baseline", "show", tmp_path)
    assert done.exit_code == 2
    assert "retbench baseline save" in done.stderr


def test_a_baseline_in_the_place_of_the_run_is_reported_from_a_damaged_one(tmp_path: Path) -> None:
    folder, run = tmp_path / "baselines", run_of(tmp_path, 0)
    assert call("baseline", "save", run, "--folder", folder).exit_code == 0
    baseline = folder / NAME
    done = call("compare", run, baseline)
    assert done.exit_code == 2
    assert f"Give it first: `retbench compare {baseline} {run}`." in done.stderr
    assert "records of a run in its place" in call("compare", baseline, baseline).stderr
    baseline.write_text("{}", encoding="utf-8")
    assert "Give it first" not in call("compare", run, baseline).stderr


def test_a_folder_of_baselines_in_the_place_of_one_is_refused_with_their_names(
    baseline: Path, runs: list[Path]
) -> None:
    for folder in (baseline.parent, baseline.parent.parent):
        done = call("compare", folder, runs[8])
        assert done.exit_code == 2
        assert f"holds no records (*.jsonl). Give one of its baselines: {baseline}." in done.stderr
    shutil.copy(runs[7], baseline.parent / "run.jsonl")
    assert "records" not in call("compare", baseline.parent, runs[8]).stderr


def test_a_folder_with_the_exact_quantities_alone_says_that_it_holds_them(tmp_path: Path) -> None:
    assert "It holds" not in call("baseline", "show", tmp_path).stderr
    (tmp_path / "exact.json").write_text("{}", encoding="utf-8")
    done = call("baseline", "show", tmp_path)
    assert done.exit_code == 2
    assert (
        f"It holds exact.json, for `retbench check`: `retbench baseline show {tmp_path / 'exact.json'}`"
        in done.stderr
    )
