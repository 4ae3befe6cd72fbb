"""Tasks are lm-eval's own; what they are over, and where examples are from, is said."""

import json

import datasets
import pytest

from retbench.errors import ConfigError, UnsupportedError
from retbench.evaluation.task_entries import TASKS
from retbench.evaluation.tasks import check_task, load_task, quiet, task_rows


def write_copa(folder, split, numbers):
    """Documents with a number each."""
    (folder / "copa").mkdir(exist_ok=True)
    rows = [
        {"premise": f"It was {n}.", "choice1": "A.", "choice2": "B.", "question": "cause", "label": 0}
        for n in numbers
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "copa" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def contexts(loaded):
    with quiet():
        loaded.task.build_all_requests()
    return [request.args[0] for request in loaded.task.instances][::2]


def numbers_before(context):
    """Numbers of the examples, and that of the document."""
    *examples, own = [int(part.split(" ")[0]) for part in context.split("It was ")[1:]]
    return examples, own


@pytest.mark.parametrize(
    "name", [entry.name for entry in TASKS.values() if entry.on_hub and not entry.reads_whole]
)
def test_every_task_loads_from_local_files(name, data_dir):
    loaded = load_task(name, data_dir=data_dir)
    assert loaded.data_source == "local"
    assert all((data_dir / file).exists() for file in loaded.data_files)
    assert loaded.entry.metric in loaded.task.aggregation()
    assert loaded.fewshot_source is None


def test_examples_of_the_split_that_is_evaluated_leave_the_document_out(tmp_path):
    loaded = load_task("copa", data_dir=write_copa(tmp_path, "validation", range(5)), num_fewshot=4)
    assert loaded.fewshot_source == "validation, without the document itself"
    for context in contexts(loaded):
        examples, own = numbers_before(context)
        assert sorted([*examples, own]) == list(range(5))


def test_of_a_test_split_too(tmp_path):
    """lm-eval by itself would draw the document as its own example here."""
    (tmp_path / "lambada").mkdir()
    text = "".join(json.dumps({"text": f"It was {n} and end{n}"}) + "\n" for n in range(4))
    (tmp_path / "lambada" / "lambada_test.jsonl").write_text(text, encoding="utf-8")
    loaded = load_task("lambada_openai", data_dir=tmp_path, num_fewshot=3)
    with quiet():
        loaded.task.build_all_requests()
    for request in loaded.task.instances:
        assert all(request.args[0].count(f"It was {n} ") == 1 for n in range(4))
    assert loaded.fewshot_source == "test, without the document itself"


def test_examples_come_from_the_training_split_where_there_is_one(tmp_path):
    write_copa(tmp_path, "validation", range(3))
    write_copa(tmp_path, "train", range(100, 110))
    loaded = load_task("copa", data_dir=tmp_path, num_fewshot=2)
    assert loaded.fewshot_source == "train"
    assert loaded.data_files == ("copa/validation.jsonl", "copa/train.jsonl")
    assert all(min(numbers_before(context)[0]) >= 100 for context in contexts(loaded))


def test_examples_come_from_validation_where_test_is_evaluated(data_dir):
    loaded = load_task("openbookqa", data_dir=data_dir, num_fewshot=2)
    assert (loaded.split, loaded.fewshot_source) == ("test", "validation")
    assert len(loaded.data_files) == 2


def test_the_seed_decides_the_examples(tmp_path):
    write_copa(tmp_path, "validation", range(20))
    drawn = [contexts(load_task("copa", data_dir=tmp_path, num_fewshot=3, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({context.rpartition("It was")[0] for context in drawn[0]}) > 10


def test_more_examples_than_there_are(tmp_path):
    write_copa(tmp_path, "validation", range(5))
    with pytest.raises(ConfigError, match="5 examples asked for, and there are 4"):
        load_task("copa", data_dir=tmp_path, num_fewshot=5)


def test_examples_of_the_training_split_are_one_fewer_than_it_has(tmp_path):
    """lm-eval draws one more, in case the document is among them."""
    write_copa(tmp_path, "validation", range(3))
    write_copa(tmp_path, "train", range(100, 105))
    with pytest.raises(ConfigError, match="5 examples asked for, and there are 4"):
        load_task("copa", data_dir=tmp_path, num_fewshot=5)
    assert len(contexts(load_task("copa", data_dir=tmp_path, num_fewshot=4))) > 0


def test_a_plan_refuses_local_files_that_cannot_be_asked(tmp_path):
    write_copa(tmp_path, "validation", range(5))
    check_task("copa", num_fewshot=4, data_dir=tmp_path)
    with pytest.raises(ConfigError, match="5 examples asked for, and there are 4"):
        check_task("copa", num_fewshot=5, data_dir=tmp_path)
    with (tmp_path / "copa" / "validation.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"premise": "It was."\n')
    with pytest.raises(ConfigError, match="line 6"):
        check_task("copa", num_fewshot=0, data_dir=tmp_path)


def test_whole_texts_take_no_examples(data_dir):
    with pytest.raises(ConfigError, match="takes no examples"):
        load_task("wikitext", data_dir=data_dir, num_fewshot=4)


def test_an_unknown_task():
    with pytest.raises(ConfigError, match="Did you mean 'hellaswag'"):
        load_task("helaswag")


def test_rows_with_other_fields_are_refused(tmp_path):
    (tmp_path / "copa").mkdir()
    (tmp_path / "copa" / "validation.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"copa/validation.jsonl.*aps/super_glue"):
        load_task("copa", data_dir=tmp_path)


def test_only_a_training_split_cannot_be_evaluated(tmp_path):
    with pytest.raises(ConfigError, match="only the split train"):
        load_task("copa", data_dir=write_copa(tmp_path, "train", range(3)))


def test_without_data_the_message_names_the_files(tmp_path):
    with pytest.raises(
        UnsupportedError, match=r"HF_HUB_OFFLINE.*below .*piqa/valid.jsonl and piqa/valid-labels.lst"
    ):
        load_task("piqa", data_dir=tmp_path)
    with pytest.raises(UnsupportedError, match=r"by its authors only.*storycloze/\*ALL_val\*.csv"):
        load_task("storycloze_2016")


def test_from_the_hub(monkeypatch):
    """lm-eval asks `datasets` for the hub's data; here a stand-in answers."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []

    def load_dataset(path, name=None, **settings):
        asked.append((path, name))
        row = {"premise": "It was.", "choice1": "A.", "choice2": "B.", "question": "cause", "label": 0}
        rows = datasets.Dataset.from_list([row] * 3)
        return datasets.DatasetDict({"train": rows, "validation": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_task("copa", num_fewshot=2)
    assert asked == [("aps/super_glue", "copa")]
    assert (loaded.data_source, loaded.data_files) == ("hub", ("aps/super_glue",))
    assert loaded.fewshot_source == "train"


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UnsupportedError, match=r"ConnectionError: no route to host.*no data folder is given"):
        load_task("copa")


def test_rows_of_the_tasks(tmp_path, monkeypatch):
    write_copa(tmp_path, "validation", range(2))
    assert {where for _, _, where in task_rows()} != {"hub"}
    monkeypatch.delenv("HF_HUB_OFFLINE")
    rows = {name: (source, where) for name, source, where in task_rows(tmp_path)}
    assert list(rows) == list(TASKS)
    assert rows["copa"][1] == "local"
    assert rows["piqa"][1] == "hub"
    assert "only from its authors" in rows["storycloze_2016"][1]
    assert "2307.08621" in rows["wsc273"][0]


def write_forms(folder, name, rows):
    """Rows as in the data sets of Based: a text that ends with a field, and its value, which stands in the text."""
    (folder / name).mkdir()
    text = "".join(
        json.dumps({"doc_id": str(n), "key": "Title", "text": text, "value": value}) + "\n"
        for n, (text, value) in enumerate(rows)
    )
    (folder / name / "validation.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "new_tokens", "until"),
    # lm-eval means 48 in the last one too, but its own default takes precedence there.
    [("swde", 48, "\n"), ("fda", 48, "\n"), ("squad_completion", 256, "\n\n")],
)
def test_tasks_of_recall_load_from_local_files_with_lm_evals_prompts(name, new_tokens, until, tmp_path):
    loaded = load_task(name, data_dir=write_forms(tmp_path, name, [(" Title: A cat. Title: ", " A cat\n")]))
    with quiet():
        loaded.task.build_all_requests()
    (request,) = loaded.task.instances
    prompt, settings = request.args
    assert prompt == "Title: A cat. Title:"
    assert (settings["max_gen_toks"], settings["until"]) == (new_tokens, [until])
    assert (loaded.data_source, loaded.data_files) == ("local", (f"{name}/validation.jsonl",))
    assert (loaded.task.VERSION, loaded.entry.reads_whole) == (1, True)


def test_tasks_of_recall_are_refused_without_data_and_with_other_fields(tmp_path):
    with pytest.raises(UnsupportedError, match=r"fda: HF_HUB_OFFLINE.*fda/validation.jsonl"):
        load_task("fda", data_dir=tmp_path)
    with pytest.raises(ConfigError, match="takes no examples"):
        load_task("swde", num_fewshot=1)
    (tmp_path / "swde").mkdir()
    (tmp_path / "swde" / "validation.jsonl").write_text('{"page": "a"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"swde/validation.jsonl.*based-swde"):
        load_task("swde", data_dir=tmp_path)
    (tmp_path / "swde" / "validation.jsonl").rename(tmp_path / "swde" / "train.jsonl")
    with pytest.raises(ConfigError, match="only the split train"):
        load_task("swde", data_dir=tmp_path)
