"""Inputs as people write them, and the message that a wrong one gets: one line, what to do, and exit code 2."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from retbench.checkpoints.reading import FORMATS
from retbench.cli import COMMANDS, app
from retbench.cli.options import read_counts
from retbench.config.dtypes import Dtype
from retbench.errors import ConfigError
from retbench.running.cluster_job import CLUSTERS
from tests.cli.conftest import invoke


def choices_in_help(command: str, before: str, after: str) -> set[str]:
    """Return the choices that the help of a command lists between two texts."""
    text = " ".join(invoke(command, "--help")[1].split())
    listed = text.partition(before)[2].partition(after)[0]
    return set(re.split(r", | or |\|", listed))


def test_help_lists_every_choice() -> None:
    assert choices_in_help("generate", "Of the checkpoint: ", ".") == {"auto", *FORMATS}
    assert choices_in_help("submit", "--cluster [", "]") == set(CLUSTERS)
    for command in ("run", "verify", "predict", "generate"):
        assert choices_in_help(command, "--dtype DTYPE [", "]") == set(get_args(Dtype))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rnu",), "unknown command 'rnu'. Did you mean 'run'?"),
        (("run",), "`retbench run` needs EXPERIMENT. A name from `retbench list`"),
        (("run", "latency", "--rounds", "3"), "use --set rounds=3."),
        (("run", "latency", "--size", "25M"), "use --set size=25M."),
        (("run", "latency", "--context", "8k"), "such as --set workloads.decode.context_len=[8K]."),
        (("run", "latency", "--devise", "cpu"), "Did you mean --device?"),
        (("run", "latency", "--limit", "many"), "--limit is 'many': give a whole number."),
        (("run", "latency", "--profile", "gpu"), "Did you mean 'paper'?"),
        (("run", "latency", "--set", "foo=1"), "Its fields are size, dtype, rounds, "),
        (("run", "latency", "--set", "rounds=0"), "rounds' is 0: give 1 or more."),
        (("run", "latency", "--set", "rounds=x"), "rounds' is 'x': give a whole number."),
        (("run", "latency", "--set", "dtype=fp17"), "give 'float64', 'float32', 'bfloat16' or 'float16'."),
        (("run", "latency", "--set", "workloads.decode.context_len=[1.7K]"), "give a whole number"),
        (("run", "latency", "--set", "models.retnet.architecture=rtnet"), "known are 'retnet', "),
        (("run", "latency", "--set"), "--set needs a value."),
        (("run", "latency", "extra"), "unexpected extra argument"),
        (("list", "--format", "html"), "unknown format 'html'. Known: json, md, text."),
        (("list", "--json", "--format", "md"), "--json and --format md contradict each other"),
        (("verify", "retnet", "--dtype", "fp17"), "--dtype: unknown dtype 'fp17'."),
        (("predict", "retnet", "--context", "8q"), "as 8192, 8K, 1K,8K or 1K-32K (doubling)."),
        (("predict", "retnet", "--context", "8,192"), "Give 8192, or the option once per number."),
        (("predict", "retnet", "--batch", "0"), "--batch '0': give numbers from 1 on"),
        (("generate", "x", "--max-tokens", "0"), ": 0 is out of range. Give 1 or more."),
        (("check", "--baseline", ""), "--baseline has a wrong value: it is empty."),
        (("check", "--baseline", "."), "'.' is a folder. Give a file."),
        (("export", "x", "y", "--revision", ""), "--revision has a wrong value: it is empty."),
        (("baseline", "sav"), "unknown command 'sav'. Did you mean 'save'?"),
    ],
)
def test_a_wrong_input_gets_one_message_that_says_what_to_do(words: tuple[str, ...], message: str) -> None:
    code, stdout, stderr = invoke(*words)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert stderr.startswith("retbench: ")
    assert "Input should" not in stderr


def test_a_dtype_has_its_usual_names() -> None:
    code, _, stderr = invoke("run", "latency", "--profile", "smoke", "--device", "cpu", "--dtype", "fp16")
    assert code == 3
    assert "dtype float16 on a CPU" in stderr


def predicted(*words: str) -> Any:
    code, stdout, stderr = invoke("predict", "retnet", "--json", *words)
    assert code == 0, stderr
    return json.loads(stdout)


@pytest.mark.parametrize("context", ["8k", "8K", "8192", "8_192"])
def test_a_number_of_tokens_is_read_as_people_write_it(context: str) -> None:
    lengths = {one["context_len"] for one in predicted("--size", "25M", "--context", context)["predictions"]}
    assert lengths == {8192}


def test_sizes_and_dtypes_are_read_in_either_case() -> None:
    found = [
        predicted("--size", size, "--dtype", dtype) for size, dtype in (("25m", "bfloat16"), ("25M", "BF16"))
    ]
    assert found[0] == found[1]
    assert found[0]["size"] == "25m"
    assert "size 25M" in invoke("predict", "retnet", "--size", "25m")[1]


@given(st.integers(0, 10), st.integers(0, 10))
def test_a_range_doubles(low: int, more: int) -> None:
    given_range = read_counts([f"{2**low}K-{2 ** (low + more)}K"], "--context")
    assert given_range == [1024 * 2**step for step in range(low, low + more + 1)]


def test_a_list_and_repeated_options_are_one_list() -> None:
    assert read_counts(["1K,3k", "8192", "8K"], "--context") == [1024, 3072, 8192]


@given(st.text(st.characters(codec="ascii"), max_size=12))
def test_any_other_text_is_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        found = read_counts([text], "--context")
        assert found
        assert all(one >= 1 for one in found)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [60, 80])
def test_help_fits_the_terminal(name: str, width: int) -> None:
    for option in ("-h", "--help"):
        result = CliRunner().invoke(app, [name, option], terminal_width=width)
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= width


def test_help_has_one_gap_before_a_default_and_no_double_dots() -> None:
    assert "fp16.  [default: float32]" in " ".join(
        line.strip() for line in invoke("verify", "--help")[1].splitlines()
    )
    assert "{RUN}..." in invoke("baseline", "save", "--help")[1]


def test_the_help_of_baseline_shows_whole_sentences() -> None:
    assert (
        "..."
        not in CliRunner().invoke(app, ["baseline", "--help"], terminal_width=80).stdout.partition("\n")[2]
    )


def complete(words: str, cwd: Path) -> list[str]:
    """The completions of a command line by bash, whose last word is completed."""
    environment = {
        **os.environ,
        "_RETBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    command = [sys.executable, "-m", "retbench"]  # of the name `retbench` too, which the variables have
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("retbench ru", ["run"]),
        ("retbench run la", ["latency"]),
        ("retbench run latency --profile ", ["smoke", "cpu", "paper"]),
        ("retbench verify retnet --size 125", ["125M"]),
        ("retbench check --experiment la", ["latency"]),
        ("retbench check --experiment recall_slices --profile t", ["trained"]),
    ],
)
def test_a_shell_completes_experiments_profiles_and_sizes(
    words: str, expected: list[str], tmp_path: Path
) -> None:
    assert complete(words, tmp_path) == expected
