"""Mutated records: whatever a results folder holds, tables, claims and the report are made of what can be read."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report.synthetic_records import CPU, SMALL, SMALL_TRAINER, Maker
from report.synthetic_scores import ScoreMaker
from retbench.errors import RecordError
from retbench.records.record import Record
from retbench.report.claims.judge import judge_claims
from retbench.report.claims.tables import claims_json, claims_markdown
from retbench.report.contents import contents_of
from retbench.report.report import make_page
from retbench.report.results import load_results
from retbench.report.selection import select
from retbench.report.tables.experiments import table_of
from retbench.report.tables.formats import FORMATS, render

SEEDS = st.integers(0, 2**63)
"""A number per example. Of mutations that it draws itself hypothesis may report a conflict in place of an error."""
PUBLISHED = Path(__file__).parents[2] / "results" / "published"

DEEP: list[Any] = []
for _ in range(100):
    DEEP = [DEEP]

ODD_NUMBERS = [2**70, -(2**70), 2**63, 2**53, 10**9, 1024, 1, 0, -1, -0.5, 1e308, -1e308, 5e-324, 1e-300]
ODD_TEXTS = [
    *("", "x", "x" * 5000, "\x1b[2J", "a\nb", "\ud800", "=1", "1e999", "NaN", "../up", "|`<b>", "$x_1$", "0"),
    *("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2099-01-01T00:00:00Z", "ok", "oom", "whole"),
    *("retnet", "transformer", "mamba2", "decode", "memory", "perplexity", "zeroshot", "training_run", "1m"),
]
ODD_OBJECTS = [True, False, None, [], {}, DEEP, [None], {"a": 1}, [[1.5], "x"]]


def published(experiment: str) -> list[Record]:
    """Every tenth record of an experiment, as an earlier version wrote them."""
    found = [record for record in load_results(PUBLISHED).records if record.experiment == experiment]
    return found[:: len(found) // 6]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, list[Any]]:
    """Records as JSON values, by the folder that holds their documents."""
    scores = ScoreMaker(tmp_path_factory.mktemp("scores"), seeds={"1m": (0,), "6m": (0,)}, num_documents=12)
    scores.trainings()
    scores.perplexities("wikitext-103", "whole", 2048)
    scores.zeroshots(0, ("piqa",))
    (folder,) = {path.parent for path in scores.root.rglob("*.documents.jsonl.gz")}
    costs = [one for one in Maker(CPU).latency((1024, 2048)) if one.round < 2]
    found: dict[Path, list[Record]] = {folder: scores.records}
    for name, records in {
        "costs": [*costs, *Maker(CPU).memory((1024, 2048))],
        "training": [one for one in Maker(SMALL_TRAINER).training((2048, 4096)) if one.round < 2],
        "throughput": [one for one in Maker(SMALL).throughput((1024,), (1, 2)) if one.round < 2],
        "published": [*published("latency"), *published("quality")],
    }.items():
        found[tmp_path_factory.mktemp(name)] = records
    return {
        place: [json.loads(record.model_dump_json()) for record in records]
        for place, records in found.items()
    }


def places_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every part of a JSON value."""
    if path:
        yield path
    for key, one in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places_of(one, (*path, key))


def mutate(records: list[Any], chance: Random) -> list[Any]:
    """Return records of which some parts are replaced, removed or renamed."""
    made = json.loads(json.dumps(records))
    for _ in range(chance.randint(1, 4)):
        *path, last = chance.choice([*places_of(chance.choice(made))])
        value = chance.choice([*ODD_NUMBERS, *ODD_TEXTS, *ODD_OBJECTS])
        targets = made if chance.random() < 0.5 else [chance.choice(made)]
        what = chance.choice(["replace", "replace", "replace", "remove", "add"])
        for target in targets:
            change(target, path, last, what, copy.deepcopy(value))
    return made


def change(target: Any, path: list[Any], last: Any, what: str, value: Any) -> None:
    """Change one part of a JSON value, unless an earlier change has removed it."""
    try:
        for key in path:
            target = target[key]
        if what == "remove":
            del target[last]
        elif what == "add" and isinstance(target, dict):
            target[str(value)] = target[last]
        else:
            target[last] = value
    except (LookupError, TypeError):
        return


def make_everything(folder: Path, records: list[Any], form: str, *, with_page: bool) -> None:
    """Make everything that is made of a results folder, unless none of its lines can be read."""
    lines = [json.dumps(record) for record in records]
    (folder / "run.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        results = load_results(folder)
    except RecordError as error:
        assert "no record that can be read" in str(error)  # noqa: PT017 - the only reason to make nothing
        return
    assert all(problem.isprintable() and len(problem) < 2000 for problem in results.problems)
    for experiment in {record.experiment for record in results.records}:
        table = table_of(contents_of(select(results.records, experiment, results.folders)), experiment)
        text = render(table, form)
        assert text.replace("\n", "").replace("\t", "").isprintable()
    judged = judge_claims(results)
    json.dumps(claims_json(judged), allow_nan=False)
    assert claims_markdown(judged)
    if with_page:
        make_page(results)


def check(sources: dict[Path, list[Any]], seed: int, page_every: int) -> None:
    """Make everything of records with mutations by a seed, which alone reproduces a failure."""
    chance = Random(seed)
    folder = chance.choice([*sources])
    records = mutate(sources[folder], chance)
    make_everything(folder, records, chance.choice(FORMATS), with_page=seed % page_every == 0)


@settings(max_examples=25)
@given(SEEDS)
def test_mutated_records_make_tables_claims_and_a_report(sources: dict[Path, list[Any]], seed: int) -> None:
    check(sources, seed, page_every=5)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(SEEDS)
def test_ten_thousand_mutated_record_sets(sources: dict[Path, list[Any]], seed: int) -> None:
    check(sources, seed, page_every=40)
