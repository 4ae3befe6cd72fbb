"""Two records are compared on the same documents, or refused with what differs."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report.synthetic_scores import ScoreMaker
from retbench.records.documents import read_documents, write_documents
from retbench.records.record import Metric
from retbench.report.document_comparisons import DocumentComparison, Folders
from retbench.report.evaluations import make_evaluations
from retbench.report.selection import select


def compared(
    maker: ScoreMaker, workload: str = "perplexity", *, protocol: str = "whole"
) -> list[DocumentComparison]:
    """Return the comparisons of a pair at one task point."""
    if workload == "perplexity":
        maker.perplexities("litbank/original", protocol, 2048)
    else:
        maker.zeroshots(0)
    folders: Folders = {
        r.documents: maker.root / "epyc-9b14-2c" / "quality" for r in maker.records if r.documents
    }
    scores = make_evaluations(select(maker.records, folders=folders))
    assert scores is not None
    return list(scores.comparisons)


def one_pair(root: Path, **fields: Any) -> ScoreMaker:
    return ScoreMaker(root, seeds={"1m": (0,)}, **fields)


def only_retnet(**changes: Any) -> Any:
    """A change of RetNet's records alone."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].name != "retnet":
            return arguments
        arguments = {
            **arguments,
            "settings": dict(arguments["settings"]),
            "backend": dict(arguments["backend"]),
        }
        for name, value in changes.items():
            part = next((p for p in ("settings", "backend") if name in arguments[p]), None)
            if name == "weights":
                weights = arguments["model"].weights.model_copy(update=value)
                arguments["model"] = arguments["model"].model_copy(update={"weights": weights})
            elif part:
                arguments[part].pop(name)
                arguments[part] |= {} if value is None else {name: value}
            else:
                arguments[name] = value
        return arguments

    return change


def test_the_ratio_is_of_sums_over_documents_and_agrees_with_the_difference(tmp_path: Path) -> None:
    maker = one_pair(tmp_path)
    (found,) = compared(maker)
    bits = {r.model.name: r.metrics["bits_per_byte"].value for r in maker.records}
    assert found.refusal is None
    assert found.ratio is not None
    assert found.difference is not None
    assert found.ratio.value == pytest.approx(bits["retnet"] / bits["transformer"])
    assert found.difference.value == pytest.approx(bits["retnet"] - bits["transformer"])
    assert found.ratio.low is not None
    assert found.difference.low is not None
    assert (found.ratio.low > 1) == (found.difference.low > 0)
    assert found.ratio.num_documents == 60


def test_accuracies_are_paired_question_by_question(tmp_path: Path) -> None:
    maker = one_pair(tmp_path)
    found = {c.point.task: c for c in compared(maker, "zeroshot")}
    assert set(found["hellaswag"].accuracies) == {"acc", "acc_norm"}
    assert set(found["lambada_openai"].accuracies) == {"acc"}
    values = {r.model.name: r.metrics["acc"].value for r in maker.records if r.point.task == "piqa"}
    pair = found["piqa"].accuracies["acc"]
    assert pair.difference == pytest.approx(values["retnet"] - values["transformer"])
    assert pair.num_documents == 300


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "validation"}, "split validation and test"),
        ({"limit": 10}, "limit 10 and none"),
        ({"corpus_fingerprint": "other"}, "corpus other and lit456789012"),
        ({"corpus_fingerprint": None}, "the record of retnet does not state its corpus_fingerprint"),
        ({"tokenizer_fingerprint": None}, "does not state its tokenizer_fingerprint"),
        ({"weights": {"num_tokens": 10_000_000}}, "trained on 10,000,000 and 20,000,000 tokens"),
        ({"weights": {"corpus": "python"}}, "trained on python and classic_books"),
        ({"documents": None}, "the record of retnet holds no per-document results"),
    ],
)
def test_what_differs_is_refused_and_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (found,) = compared(one_pair(tmp_path, change=only_retnet(**changes)))
    assert found.refusal is not None
    assert words in found.refusal
    assert found.ratio is None
    assert found.difference is None


@pytest.mark.parametrize(("share", "is_refused"), [(1.009, False), (1.02, True)])
def test_models_whose_parameters_differ_by_more_than_one_percent_are_refused(
    tmp_path: Path, share: float, is_refused: bool
) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        model = arguments["model"]
        if model.name != "retnet":
            return arguments
        count = round(share * model.num_params_nonembedding)
        model = model.model_copy(update={"num_params_nonembedding": count})
        return arguments | {"model": model, "pair_id": "another", "run_id": "another"}

    (found,) = compared(one_pair(tmp_path, change=change))
    assert (found.ratio is None) == is_refused
    assert ("not matched" in str(found.refusal)) == is_refused


def test_a_mismatch_that_the_experiment_allows_is_compared(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        settings = arguments["settings"] | {"allow_mismatch": True}
        model = arguments["model"].model_copy(
            update={"num_params_nonembedding": 10 if arguments["model"].name == "retnet" else 20}
        )
        name = arguments["model"].name
        return arguments | {"settings": settings, "model": model, "pair_id": name, "run_id": name}

    (found,) = compared(one_pair(tmp_path, change=change))
    assert found.refusal is None
    assert found.ratio is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts_fingerprint": "other"}, "prompts other and "),
        ({"lm_eval_version": "0.4.9"}, "lm-eval 0.4.9 and 0.4.13"),
        ({"task_version": "2.0"}, "version of the task 2.0 and 1.0"),
        ({"lm_eval_version": None}, "does not state its lm_eval_version"),
    ],
)
def test_answers_to_other_prompts_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    comparisons = compared(one_pair(tmp_path, change=only_retnet(**changes)), "zeroshot")
    assert len(comparisons) == 4
    for found in comparisons:
        assert found.refusal is not None
        assert words in found.refusal
        assert not found.accuracies


def test_another_tokenizer_is_compared_in_bytes_where_the_same_bytes_are_scored(tmp_path: Path) -> None:
    (found,) = compared(
        one_pair(tmp_path, change=only_retnet(tokenizer_fingerprint="gpt2", tokenizer="gpt2"))
    )
    assert found.refusal is None
    assert found.ratio is not None


def test_what_has_no_whole_bytes_is_compared_in_tokens(tmp_path: Path) -> None:
    maker = one_pair(tmp_path)
    (found,) = compared(maker, protocol="last")
    nats = {r.model.name: r.metrics["nats_per_token"].value for r in maker.records}
    assert found.refusal is None
    assert found.unit == "token"
    assert found.ratio is not None
    assert found.difference is not None
    assert found.ratio.value == pytest.approx(nats["retnet"] / nats["transformer"])
    assert found.difference.value == pytest.approx((nats["retnet"] - nats["transformer"]) / math.log(2))
    assert found.ratio.low is not None
    assert found.ratio.num_documents == 60


def test_tokens_of_another_tokenizer_or_text_are_refused(tmp_path: Path) -> None:
    other = only_retnet(tokenizer_fingerprint="gpt2", tokenizer="gpt2")
    (found,) = compared(one_pair(tmp_path / "a", change=other), protocol="last")
    assert "the tokenizers differ: gpt2 and bytes" in str(found.refusal)
    assert found.ratio is None
    change = rows_of_retnet(lambda number, row: row | ({"num_tokens": 17} if number == 3 else {}))
    (found,) = compared(one_pair(tmp_path / "b", change_rows=change), protocol="last")
    assert (found.refusal, found.ratio) == ("document 3 differs: its num_tokens is 17 and 5120", None)


def test_nats_that_do_not_add_up_to_the_record_are_refused(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        metrics = arguments["metrics"] | {"nats_per_token": Metric(unit="nats", value=1.0)}
        return arguments | {"metrics": metrics}

    (found,) = compared(one_pair(tmp_path, change=change), protocol="last")
    assert str(found.refusal).startswith("nats_per_token of retnet is 1, and that of its documents 1.1")


def rows_of_retnet(change: Any) -> Any:
    def changed(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [change(number, dict(row)) for number, row in enumerate(rows)] if model == "retnet" else rows

    return changed


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", "another book", "document 3 differs: its name is 'another book' and 'book 3'"),
        ("num_bytes", 17, "document 3 differs: its num_bytes is 17 and "),
    ],
)
def test_other_documents_are_refused(tmp_path: Path, field: str, value: object, words: str) -> None:
    change = rows_of_retnet(lambda number, row: row | ({field: value} if number == 3 else {}))
    (found,) = compared(one_pair(tmp_path, change_rows=change))
    assert found.refusal is not None
    assert words in found.refusal


def test_fewer_documents_are_refused(tmp_path: Path) -> None:
    def shorten(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return rows[:-1] if model == "retnet" else rows

    (found,) = compared(one_pair(tmp_path, change_rows=shorten))
    assert "59 and 60 documents" in str(found.refusal)


@pytest.mark.parametrize("protocol", ["whole", "last"])
def test_documents_of_which_nothing_was_scored_do_not_count(tmp_path: Path, protocol: str) -> None:
    def empty(_: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*rows, {"name": "short", "num_tokens": 0, "num_bytes": 0, "num_words": 0, "nll_nats": 0.0}]

    (found,) = compared(one_pair(tmp_path, change_rows=empty), protocol=protocol)
    assert found.ratio is not None
    assert found.ratio.num_documents == 60


def test_documents_that_do_not_add_up_to_the_record_are_refused(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        metrics = arguments["metrics"] | {"bits_per_byte": Metric(unit="bits", value=1.0)}
        return arguments | {"metrics": metrics}

    (found,) = compared(one_pair(tmp_path, change=change))
    assert found.refusal is not None
    assert found.refusal.startswith("bits_per_byte of retnet is 1, and that of its documents 1.6")


def test_a_lost_or_damaged_file_is_refused(tmp_path: Path) -> None:
    maker = one_pair(tmp_path)
    maker.perplexities("litbank/original", "whole", 2048)
    scores = make_evaluations(select(maker.records))
    assert scores is not None
    assert "the folder of this file is not known" in str(scores.comparisons[0].refusal)
    folder = tmp_path / "epyc-9b14-2c" / "quality"
    for path in folder.glob("*.gz"):
        path.write_bytes(b"damaged")
    scores = make_evaluations(
        select(maker.records, folders={r.documents: folder for r in maker.records if r.documents})
    )
    assert scores is not None
    assert "cannot be read" in str(scores.comparisons[0].refusal)


def test_few_documents_give_a_ratio_and_no_interval(tmp_path: Path) -> None:
    (found,) = compared(one_pair(tmp_path, num_documents=5))
    assert found.ratio is not None
    assert found.ratio.low is None
    assert math.isfinite(found.ratio.value)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> ScoreMaker:
    maker = one_pair(tmp_path_factory.mktemp("asked"), num_documents=12)
    maker.perplexities("litbank/original", "whole", 2048)
    maker.perplexities("litbank/original", "last", 2048)
    maker.zeroshots(0, ("piqa",))
    return maker


odd = st.sampled_from(
    [2**63, -1, 0, 1, 1e308, -1e308, 5e-324, "", "x", "\x1b[2J", None, True, [], [1], {}, {"a": 1}]
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_the_documents_hold_there_is_a_number_or_a_reason(
    asked: ScoreMaker, data: st.DataObject
) -> None:
    folder = asked.root / "epyc-9b14-2c" / "quality"
    number = data.draw(st.integers(0, len(asked.records) - 1))
    record = asked.records[number]
    assert record.documents is not None
    rows = read_documents(folder, record.documents)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from([*rows[0]]))
        value = data.draw(odd)
        for row in rows if data.draw(st.booleans()) else [data.draw(st.sampled_from(rows))]:
            row[name] = value
    changed = record.model_copy(update={"documents": write_documents(folder, "changed", rows), "metrics": {}})
    records = [*asked.records[:number], changed, *asked.records[number + 1 :]]
    folders: Folders = {one.documents: folder for one in records if one.documents}
    found = make_evaluations(select(records, folders=folders))
    assert found is not None
    for comparison in found.comparisons:
        numbers = comparison.ratio or comparison.accuracies
        assert (comparison.refusal is None) == bool(numbers) or record.workload == "zeroshot"
        assert comparison.refusal is None or comparison.refusal.isprintable()
