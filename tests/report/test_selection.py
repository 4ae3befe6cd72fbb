"""Selection: the newest set that may be compared, and a sentence on everything else."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from report.synthetic_records import CPU, Maker
from retbench.errors import ConfigError, RecordError
from retbench.records.record import Record
from retbench.report.selection import select

LATER = replace(CPU, started=CPU.started + timedelta(days=1))


def test_nothing_to_select_from_says_what_to_run() -> None:
    with pytest.raises(RecordError, match="retbench run latency"):
        select([])


def test_an_unknown_experiment_suggests_the_nearest(cpu_records: list[Record]) -> None:
    with pytest.raises(ConfigError, match=r"unknown experiment 'latncy'\. Did you mean 'latency'\?"):
        select(cpu_records, "latncy")


def test_one_set_is_taken_whole(cpu_records: list[Record]) -> None:
    selection = select(cpu_records)
    assert sorted(map(id, selection.records)) == sorted(map(id, cpu_records))
    assert selection.left_out == ()
    assert {record.experiment for record in select(cpu_records, "memory").records} == {"memory"}


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (replace(LATER, name="other-1c"), "machine epyc-9b14-2c, here other-1c"),
        (replace(LATER, dtype="bfloat16"), "dtype float32, here bfloat16"),
        (replace(LATER, threads=1), "threads 2, here 1"),
        (replace(LATER, code_revision="0.2.0"), "code revision 0.1.0+src.0123456789ab, here 0.2.0"),
        (replace(LATER, torch_version="2.6.0"), "torch 2.13.0, here 2.6.0"),
        (replace(LATER, size="6m"), "size 25m, here 6m"),
    ],
)
def test_the_newest_set_is_taken_and_the_other_is_stated(machine: Any, words: str) -> None:
    older = Maker(CPU).latency(lengths=(1024, 2048))
    newer = Maker(machine).latency(lengths=(1024, 2048))
    selection = select(newer + older)
    assert sorted(map(id, selection.records)) == sorted(map(id, newer))
    assert len(selection.left_out) == 1
    assert words in selection.left_out[0]
    assert selection.left_out[0].startswith("latency: 40 records of 2026-01-02 ")


def test_a_newer_set_without_a_value_does_not_push_out_an_older_one() -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "failed", "error": "boom", "metrics": {}}

    older = Maker(CPU).memory()
    newer = Maker(replace(LATER, code_revision="0.2.0"), change=fail).memory()
    selection = select(older + newer)
    assert sorted(map(id, selection.records)) == sorted(map(id, older))
    assert "12 records of 2026-01-03 (12 without a value)" in selection.left_out[0]


def test_what_was_measured_again_is_counted(cpu_records: list[Record]) -> None:
    selection = select(cpu_records + cpu_records[:3])
    assert len(selection.records) == len(cpu_records)
    assert selection.left_out[0].startswith("3 records were measured again")


def changed(setting: str, value: object, model: str | None = None) -> Any:
    """A change of one setting that gives other cells, as another command line would."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if model is not None and arguments["model"].name != model:
            return arguments
        settings = arguments["settings"] | {setting: value}
        return arguments | {"settings": settings, "cell_id": arguments["cell_id"][::-1]}

    return change


def test_other_settings_of_the_same_set_are_not_mixed() -> None:
    older = Maker(CPU).memory()
    newer = Maker(LATER, change=changed("min_steps", 5)).memory(lengths=(1024,))
    selection = select(older + newer)
    assert sorted(map(id, selection.records)) == sorted(map(id, newer))
    assert "12 records of 2026-01-02 with other settings (min_steps 20, here 5)" in selection.left_out[0]


def test_rounds_under_other_conditions_are_not_mixed(cpu_records: list[Record]) -> None:
    def under(record: Record, **facts: Any) -> Record:
        return record.model_copy(update={"environment": {**record.environment, **facts}})

    decoded = [record for record in cpu_records if record.workload == "decode"]
    last = max(record.round for record in decoded)
    here, there = {"OMP_PLACES": "{0}"}, {"OMP_PLACES": "{1}", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    mixed = [
        under(record, variables=there if record.round == last else here, cpu_quota=2.0) for record in decoded
    ]
    chosen = select(mixed)
    assert {record.round for record in chosen.records} == {last}
    assert any("variables.ONEDNN_MAX_CPU_ISA None, here SSE41" in note for note in chosen.left_out), (
        chosen.left_out
    )
    placed = [under(record, variables={"OMP_PLACES": f"{{{record.round}}}"}) for record in decoded]
    assert len(select(placed).records) == len(decoded)


def test_another_way_to_run_one_model_replaces_that_model_only() -> None:
    older = Maker(CPU).memory()
    newer = Maker(LATER, change=changed("chunk_size", 64, "retnet")).memory()
    chosen = [record for record in newer if record.model.name == "retnet"]
    selection = select(older + chosen)
    assert {r.settings["chunk_size"] for r in selection.records if r.model.name == "retnet"} == {64}
    assert [r for r in selection.records if r.model.name == "transformer"] == older[6:]
    assert selection.left_out == (
        "memory: 6 records of 2026-01-02 of retnet run another way (chunk_size 128, here 64).",
    )
