"""The record file: what is written is read back, and damage costs no more than the lines it touched."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

import retbench
from retbench.errors import RecordError, StorageError
from retbench.records.record import (
    SCHEMA_VERSION,
    Ceilings,
    Gate,
    GateCheck,
    Metric,
    ModelInfo,
    Point,
    ReadRate,
    Record,
    record_schema,
)
from retbench.records.store import append_record, new_run_id, parse_record, read_files, read_records
from retbench.units import stated_unit

SCHEMA_PATH = Path(retbench.__file__).parent / "records" / "record.schema.json"


finite = st.floats(-1e150, 1e150)
positive = st.floats(min_value=1e-150, max_value=1e150)
whole = st.integers(-(2**63), 2**63)
counts = st.integers(0, 2**53)
text = st.text(
    st.characters(
        exclude_categories=["Cc", "Cs", "Zl", "Zp"],
        exclude_characters="\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    ),
    max_size=12,
)
plain = st.dictionaries(text, st.none() | st.booleans() | whole | finite | text, max_size=3)


def curves() -> st.SearchStrategy[tuple[ReadRate, ...]]:
    """Read bandwidths by size, in order."""
    return st.dictionaries(st.integers(1, 2**40), positive, max_size=4).map(
        lambda found: tuple(
            ReadRate(footprint_bytes=size, bytes_per_s=rate, kernel="dot", measured_at="2026-01-01T00:00:00Z")
            for size, rate in sorted(found.items())
        )
    )


def in_stated_units(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """Give metrics whose names state a unit this unit, and values above 0, without which a record is refused."""
    found = {}
    for name, metric in metrics.items():
        unit = stated_unit(name) or metric.unit
        is_free = stated_unit(name) is None and len(unit) > 1  # "s", "J" and "W" may be drawn
        value = metric.value if is_free else abs(metric.value) + 1
        found[name] = Metric(unit=unit, value=value, samples=metric.samples if is_free else ())
    return found


checks = st.builds(
    GateCheck,
    name=text,
    length=st.integers(1, 4096),
    error=finite | st.just(math.inf),
    limit=st.floats(1e-9, 1.0),
)
records = st.builds(
    Record,
    run_id=text,
    experiment=text,
    profile=text,
    cell_id=text,
    pair_id=st.none() | text,
    round=st.integers(0, 9),
    num_rounds=st.none() | st.integers(1, 9),
    started_at=st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    status=st.sampled_from(["ok", "oom", "timeout", "failed", "gate_failed", "unsupported"]),
    error=st.none() | text,
    model=st.builds(
        ModelInfo,
        name=text,
        architecture=text,
        variant=text,
        size=text,
        num_params=counts,
        num_params_nonembedding=counts,
        config=plain,
    ),
    workload=text,
    point=st.builds(Point, batch_size=st.integers(1, 64), context_len=st.integers(1, 2**20)),
    settings=plain,
    backend=st.dictionaries(text, st.booleans() | whole | finite | text, max_size=3),
    environment=plain | st.dictionaries(text, plain, max_size=2),
    ceilings=st.none()
    | st.builds(
        Ceilings, read_bandwidth_bytes_per_s=positive, matmul_flops_per_s=positive, read_curve=curves()
    ),
    gate=st.none()
    | st.builds(Gate, passed=st.booleans(), dtype=text, checks=st.lists(checks, max_size=2).map(tuple)),
    metrics=st.dictionaries(
        text | st.sampled_from(["tpot_s", "acc", "peak_bytes", "tokens_per_s"]),
        st.builds(Metric, unit=text, value=finite, samples=st.lists(finite, max_size=3).map(tuple)),
        max_size=2,
    ).map(in_stated_units),
    absent=st.dictionaries(text, text, max_size=2),
    command=text,
)


def make_record(round_number: int = 0) -> Record:
    return Record(
        run_id="20260102T030405Z",
        experiment="latency",
        profile="cpu",
        cell_id="a" * 16,
        round=round_number,
        started_at="2026-01-02T03:04:05Z",
        status="ok",
        model=ModelInfo(
            name="retnet",
            architecture="retnet",
            variant="fla",
            size="25m",
            num_params=27,
            num_params_nonembedding=19,
            config={"d_model": 512},
        ),
        workload="decode",
        point=Point(batch_size=1, context_len=1024),
        settings={"dtype": "float32"},
        backend={"decode": "recurrent"},
        environment={"threads": 2},
        metrics={"tpot_s": Metric(unit="s", value=0.01, samples=(0.009, 0.01, 0.011))},
        absent={"energy_per_token_j": "no counter"},
        command="retbench run latency",
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(records, min_size=1, max_size=3))
def test_records_round_trip(tmp_path_factory: pytest.TempPathFactory, written: list[Record]) -> None:
    path = tmp_path_factory.mktemp("round-trip") / "machine" / "latency" / "run.jsonl"
    for record in written:
        append_record(path, record)
    assert read_records(path.parents[2]) == (written, [])


@settings(max_examples=60, deadline=None)
@given(records)
def test_what_is_written_fits_the_schema(record: Record) -> None:
    Draft202012Validator(record_schema()).validate(json.loads(record.model_dump_json()))


def test_the_schema_file_is_the_schema_of_the_record() -> None:
    kept = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    assert kept == record_schema(), (
        f"run: python tests/records/test_record.py > {SCHEMA_PATH.name} beside records.py"
    )
    Draft202012Validator.check_schema(kept)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round", -1),
        ("status", "fine"),
        ("schema_version", SCHEMA_VERSION + 1),
        ("metrics", {"tpot_s": {"value": 1.0}}),
        ("rounds", 1),
    ],
)
def test_schema_and_reader_refuse_the_same(field: str, value: object) -> None:
    raw = json.loads(make_record().model_dump_json()) | {field: value}
    assert not Draft202012Validator(record_schema()).is_valid(raw)
    with pytest.raises(RecordError, match=field):
        parse_record(json.dumps(raw))


@pytest.mark.parametrize(
    ("name", "unit", "value", "is_read"),
    [
        ("tpot_s", "s", 0.0, False),
        ("tpot_s", "s", -1.0, False),
        ("tokens_per_s", "tokens/s", 0.0, True),
        ("workspace_bytes", "bytes", -1.0, True),  # a difference of two measured numbers
        ("peak_bytes", "bytes", 0.0, True),
        ("loss", "nats", -1.0, True),
    ],
)
def test_a_time_that_nothing_can_take_is_refused(name: str, unit: str, value: float, is_read: bool) -> None:
    for metric in (Metric(unit=unit, value=value), Metric(unit=unit, value=1.0, samples=(2.0, value))):
        line = make_record().model_copy(update={"metrics": {name: metric}}).model_dump_json()
        if is_read:
            assert parse_record(line).metrics == {name: metric}
        else:
            with pytest.raises(RecordError, match=rf"'metrics\.{name}' has {value:g} s"):
                parse_record(line)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_record_is_read_with_its_pair(version: int) -> None:
    older = json.loads(make_record().model_dump_json()) | {"schema_version": version, "pair_id": "b" * 12}
    found = parse_record(json.dumps(older))
    assert (found.schema_version, found.pair_id) == (version, "b" * 12)
    assert make_record().pair_id is None


@pytest.mark.parametrize("error", [math.nan, math.inf, -math.inf])
def test_an_error_that_is_not_finite_is_kept_and_is_plain_json(error: float) -> None:
    gate = Gate(
        passed=False, dtype="float32", checks=(GateCheck(name="x", length=1, error=error, limit=1e-4),)
    )
    line = make_record().model_copy(update={"gate": gate}).model_dump_json()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(line, parse_constant=refuse)
    back = parse_record(line)
    assert back.gate is not None
    assert back.gate.checks[0].error == pytest.approx(error, nan_ok=True)
    assert not (back.gate.checks[0].passed and error != -math.inf)


def test_a_failed_equivalence_check_names_each_failure_with_its_error_and_limit() -> None:
    checks = (
        GateCheck(name="decode = prefill", length=17, error=0.25, limit=1e-3),
        GateCheck(name="recurrent = chunkwise", length=127, error=1e-6, limit=1e-3),
        GateCheck(name="streamed state = whole", length=4096, error=math.nan, limit=1e-3),
    )
    assert Gate(passed=False, dtype="float32", checks=checks).failures == (
        "decode = prefill at 17 tokens: error 0.25, limit 0.001; "
        "streamed state = whole at 4096 tokens: error nan, limit 0.001"
    )
    assert Gate(passed=True, dtype="float32", checks=checks[1:2]).failures == ""


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_torn_line_costs_only_itself(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("torn") / "run.jsonl"
    append_record(path, make_record(0))
    whole = path.stat().st_size
    append_record(path, make_record(1))
    cut = data.draw(st.integers(whole + 1, path.stat().st_size - 2), label="cut")
    with open(path, "r+b") as file:
        file.truncate(cut)
    append_record(path, make_record(2))
    read, problems = read_records(path)
    assert [record.round for record in read] == [0, 2]
    assert len(problems) == 1
    assert f"{path}:2: " in problems[0]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    append_record(path, make_record(0))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    append_record(path, make_record(1))
    read, problems = read_records(path)
    assert [record.round for record in read] == [0, 1]
    assert problems == []


def test_a_byte_order_mark_costs_no_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    append_record(path, make_record(0))
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    read, problems = read_records(path)
    assert [record.round for record in read] == [0]
    assert problems == []


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"schema_version": 1, "run_id": "2026', "torn line"),
        (
            b'{"schema_version": 0}',
            f"schema_version is 0 and this retbench reads 1 to {SCHEMA_VERSION}",
        ),
        (b'{"schema_version": "next"}', "schema_version is 'next'"),
        (b'{"schema_version": 1}', "field 'run_id'"),
        (b"[1, 2]", "not a record"),
        (b"null", "not a record"),
        (b"[" * 100_000, "not a whole JSON object"),
        (b'{"schema_version": 3, "command": "\\ud800"}', "not a whole JSON object"),
        (b"1" * 5_000, "not a whole JSON object"),
        (b'{"run_id": "caf\xe9"}', "not UTF-8"),
        (b"\xff\xfe\x00\x00", "not UTF-8"),
        (b"\x00" * 64, "not a whole JSON object"),
    ],
)
def test_every_unreadable_line_is_named_with_its_cause(tmp_path: Path, line: bytes, cause: str) -> None:
    path = tmp_path / "run.jsonl"
    append_record(path, make_record(0))
    with open(path, "ab") as file:
        file.write(line + b"\n\n")
    append_record(path, make_record(1))
    read, problems = read_records(path)
    assert [record.round for record in read] == [0, 1]
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}:2: ")
    assert cause in problems[0]


def changed(**fields: object) -> bytes:
    """The line of a record with other values of some fields."""
    return json.dumps(json.loads(make_record().model_dump_json()) | fields).encode()


DEEP: dict[str, Any] = {}
for _ in range(80):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"settings": {"seed": 2**70}}, "settings"),
        ({"round": 2**70}, "round"),
        ({"point": {"batch_size": 2**70, "context_len": 1}}, "point.batch_size"),
        ({"environment": DEEP}, "environment"),
        ({"experiment": "x" * 100_000}, "experiment"),
        ({"workload": "two\nlines"}, "workload"),
        ({"model": make_record().model.model_dump() | {"config": 5}}, "model.config"),
        ({"model": make_record().model.model_dump() | {"num_params": -1}}, "model.num_params"),
        ({"metrics": {"a\nb": {"unit": "s", "value": 1.0}}}, "metrics"),
        ({"metrics": {"tpot_s": {"unit": "s", "value": "1e999"}}}, "metrics.tpot_s.value"),
        ({"metrics": {"tpot_s": {"unit": "ms", "value": 10.0}}}, "metrics.tpot_s.unit' is 'ms'"),
        ({"documents": {"file": "x", "sha256": "", "num_documents": 10**12}}, "documents.num_documents"),
    ],
)
def test_a_value_out_of_bounds_costs_its_line_and_no_other(
    tmp_path: Path, fields: dict[str, Any], place: str
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"\n".join([changed(), changed(**fields), changed(round=1)]))
    read, (problem,) = read_records(path)
    assert [record.round for record in read] == [0, 1]
    assert problem.startswith(f"{path}:2: field '{place}")
    assert problem.isprintable()
    assert len(problem) < 1000


@pytest.mark.parametrize("control", ["\x1b[2J", "\r", "\x07", "\x9b2J", "\x7f", "\u202e"])
def test_control_characters_are_read_as_escapes(control: str) -> None:
    fields = {"error": f"a{control}\n\tb", "environment": {control: [control]}, "experiment": f"x{control}"}
    for ensure_ascii in (True, False):
        line = json.dumps(json.loads(changed()) | fields, ensure_ascii=ensure_ascii)
        found = parse_record(line)
        escape = control[0].encode("unicode_escape").decode() + control[1:]
        assert found.error == f"a{escape}\n\tb"
        assert found.environment == {escape: [escape]}
        assert found.experiment == f"x{escape}"


def test_names_with_control_characters_are_not_written() -> None:
    with pytest.raises(ValidationError, match="experiment"):
        Record.model_validate(make_record().model_dump() | {"experiment": "a\x1b[2J"})


def test_a_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    append_record(tmp_path / "a.jsonl", make_record())
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "c.jsonl")
    with (tmp_path / "d.jsonl").open("wb") as file:
        file.truncate(2**40)
    read, problems = read_records(tmp_path)
    assert read == [make_record()]
    assert [Path(one.partition(": ")[0]).name for one in problems] == ["b.jsonl", "c.jsonl", "d.jsonl:1"]


def test_links_to_folders_of_records_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    append_record(tmp_path / "other/machine/a.jsonl", make_record())
    append_record(tmp_path / "results/own/b.jsonl", make_record())
    for link, target in {
        "other/machine/all": "other",
        "results/machine": "other/machine",
        "results/above": ".",
        "results/again": "results/machine",
        "results/latest": "results/own",
        "results/loop": "results",
    }.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    found = [path.relative_to(tmp_path) for path, _, _ in read_files(tmp_path / "results")]
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl"]
    assert found[1] == Path("results/own/b.jsonl"), "the folder itself comes before links to it"
    assert read_records(tmp_path / "results") == ([make_record()] * 2, [])


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_record(tmp_path / "a/a.jsonl", make_record())
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    read, problems = read_records(tmp_path)
    assert read == [make_record()]
    assert problems == [f"{tmp_path / 'closed'}: cannot be read: Permission denied; it is left out."]
    assert read_records(tmp_path / "missing") == ([], [])


def test_equal_parts_of_records_are_one_object(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for number in range(2):
        append_record(path, make_record(number))
    (first, second), _ = read_records(path)
    assert (first, second) == (make_record(0), make_record(1))
    assert first.model is second.model
    assert first.environment is second.environment
    assert first.metrics["tpot_s"] is not second.metrics["tpot_s"]


@settings(max_examples=40, deadline=None)
@given(records)
def test_a_line_is_read_as_pydantic_reads_it(record: Record) -> None:
    line = record.model_dump_json()
    found = parse_record(line)
    assert found == Record.model_validate_json(line)
    assert found.model_fields_set == Record.model_validate_json(line).model_fields_set
    assert found.model_dump_json() == line


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_fail(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "run.jsonl"
    path.write_bytes(noise)
    append_record(path, make_record())
    read, problems = read_records(path)
    assert read[-1:] == [make_record()]
    assert len(problems) == sum(1 for line in noise.split(b"\n") if line.strip())


def test_ids_of_runs_differ_and_sort_by_time() -> None:
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert all(re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", one) for one in ids)
    assert ids[0][:16] <= ids[-1][:16]


def test_duplicate_lines_are_all_returned(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for _ in range(2):
        append_record(path, make_record())
    assert read_records(path) == ([make_record()] * 2, [])


def test_an_empty_file_and_an_empty_folder_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").touch()
    (tmp_path / "nothing").mkdir()
    assert read_records(tmp_path) == ([], [])
    assert read_records(tmp_path / "nothing") == ([], [])


def test_a_folder_named_like_a_record_file_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").mkdir()
    read, problems = read_records(tmp_path)
    assert read == []
    assert "odd.jsonl: cannot be read" in problems[0]


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, name in [(1, "b/2.jsonl"), (0, "a/9.jsonl"), (2, "b/3.jsonl")]:
        append_record(tmp_path / name, make_record(number))
    assert [record.round for record in read_records(tmp_path)[0]] == [0, 1, 2]


WRITER = """
import sys
from pathlib import Path
from retbench.records.record import Record
from retbench.records.store import append_record
record = Record.model_validate_json(Path(sys.argv[2]).read_text())
for number in range(40):
    append_record(Path(sys.argv[1]), record.model_copy(update={"round": number, "run_id": sys.argv[3]}))
"""


def test_lines_of_two_writers_interleave_whole(tmp_path: Path) -> None:
    path, source = tmp_path / "run.jsonl", tmp_path / "one.json"
    source.write_text(make_record().model_dump_json(), encoding="utf-8")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(source), name])
        for name in ("one", "two")
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    read, problems = read_records(path)
    assert problems == []
    for name in ("one", "two"):
        assert [record.round for record in read if record.run_id == name] == list(range(40))


FILLER = """
import resource, sys
from pathlib import Path
from retbench.errors import StorageError
from retbench.records.record import Record
from retbench.records.store import append_record
path, record = Path(sys.argv[1]), Record.model_validate_json(Path(sys.argv[2]).read_text())
append_record(path, record)
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 2, size * 3 // 2))
try:
    append_record(path, record)
except StorageError as error:
    print(error)
    sys.exit(0 if path.stat().st_size == size else 3)
sys.exit(4)
"""


def test_a_full_disk_is_a_clear_error_and_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path, source = tmp_path / "run.jsonl", tmp_path / "one.json"
    source.write_text(make_record().model_dump_json(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(path), str(source)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout
    assert "--out" in done.stdout
    assert read_records(path) == ([make_record()], [])


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file", encoding="utf-8")
    with pytest.raises(StorageError, match="could not be written"):
        append_record(tmp_path / "results" / "run.jsonl", make_record())


if __name__ == "__main__":
    print(json.dumps(record_schema(), indent=2))


def ceilings_of(curve: Iterable[tuple[int, float]]) -> Ceilings:
    rates = [ReadRate(footprint_bytes=size, bytes_per_s=rate, kernel="dot") for size, rate in curve]
    return Ceilings(read_bandwidth_bytes_per_s=1.0, matmul_flops_per_s=1.0, read_curve=tuple(rates))


@pytest.mark.parametrize(
    ("footprint", "rate"),
    [(1, 80.0), (100, 80.0), (200, 60.0), (400, 40.0), (1600, 10.0), (10**12, 10.0), (100 * 2**0.5, 70.0)],
)
def test_the_read_bandwidth_at_a_footprint_lies_on_the_curve(footprint: float, rate: float) -> None:
    assert ceilings_of([(100, 80.0), (400, 40.0), (1600, 10.0)]).read_bytes_per_s(footprint) == pytest.approx(
        rate
    )


@given(curves(), st.floats(1, 1e13))
def test_a_read_bandwidth_is_never_beyond_its_neighbours(
    curve: tuple[ReadRate, ...], footprint: float
) -> None:
    found = Ceilings(read_bandwidth_bytes_per_s=3.0, matmul_flops_per_s=1.0, read_curve=curve)
    rates = [rate.bytes_per_s for rate in curve] or [3.0]
    assert min(rates) * (1 - 1e-9) <= found.read_bytes_per_s(footprint) <= max(rates) * (1 + 1e-9)


@given(curves(), st.integers(1, 2**40), positive)
def test_the_rate_of_a_process_takes_the_place_of_what_the_curve_has_at_its_size(
    curve: tuple[ReadRate, ...], size: int, rate: float
) -> None:
    before = Ceilings(read_bandwidth_bytes_per_s=3.0, matmul_flops_per_s=1.0, read_curve=curve)
    own = ReadRate(footprint_bytes=size, bytes_per_s=rate, kernel="sum")
    after = before.with_rate(own)
    assert after.read_bytes_per_s(size) == rate
    assert set(after.read_curve) - {own} == {one for one in curve if one.footprint_bytes != size}
    assert Ceilings.model_validate_json(after.model_dump_json()) == after


def test_a_curve_out_of_order_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"sizes \[400, 100\]"):
        ceilings_of([(400, 1.0), (100, 2.0)])
