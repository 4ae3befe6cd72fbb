"""The JSON Schema of experiment files: shipped files fit it, and misspelt ones do not.

`python tests/config/test_schema.py > suite/retbench/config/experiment.schema.json` writes the file.
"""

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import retbench
from retbench.config.experiment import experiment_schema
from retbench.config.experiment_files import list_experiments

PATH = Path(retbench.__file__).parent / "config" / "experiment.schema.json"
VALIDATOR = Draft202012Validator(experiment_schema())
LATENCY: dict[str, Any] = tomllib.loads(list_experiments()["latency"].read_text(encoding="utf-8"))


def test_the_file_is_the_schema_of_an_experiment() -> None:
    kept = json.loads(PATH.read_text(encoding="utf-8"))
    assert kept == experiment_schema(), f"run: python tests/config/test_schema.py > {PATH}"
    Draft202012Validator.check_schema(kept)


@pytest.mark.parametrize("name", list_experiments())
def test_every_shipped_experiment_fits(name: str) -> None:
    VALIDATOR.validate(tomllib.loads(list_experiments()[name].read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("titel",), "a title"),
        (("profiles", "smoke", "round"), 3),
        (("profiles", "smoke", "rounds"), 0),
        (("profiles", "smoke", "dtype"), "float15"),
        (("profiles", "smoke", "workloads", "decod"), {}),
        (("profiles", "smoke", "workloads", "decode", "context"), [1024]),
        (("models", "retnet", "architecture"), "retnett"),
        (("models", "retnet", "varient"), "fla"),
    ],
    ids=str,
)
def test_what_is_misspelt_or_out_of_range_does_not_fit(place: tuple[str, ...], value: object) -> None:
    raw = copy.deepcopy(LATENCY)
    node = raw
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    assert not VALIDATOR.is_valid(raw)


def test_a_profile_may_replace_one_field_of_a_model() -> None:
    raw = copy.deepcopy(LATENCY)
    raw["profiles"]["smoke"]["models"] = {"retnet": {"backend": "chunkwise"}}
    VALIDATOR.validate(raw)


if __name__ == "__main__":
    print(json.dumps(experiment_schema(), indent=2))
