"""`retbench generate` as a user meets it: what goes to which stream, whole characters, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from retbench.architectures.retnet import retnet_config
from retbench.checkpoints.format import Description
from retbench.checkpoints.native import save_checkpoint
from retbench.cli import app
from retbench.cli.generate import TextStream, generate
from retbench.data.tokenizers import ByteTokenizer, load_tokenizer
from retbench.errors import CheckpointError
from retbench.measure.devices import Device
from retbench.models.build import build_model
from tests.cli.conftest import invoke
from tests.models.hf_models import save_hf_model

DATA = os.environ.get("RETBENCH_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="needs the folder RETBENCH_DATA")
STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she"


run = partial(invoke, "generate")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A RetNet of bytes whose weights were drawn: it writes what is mostly no text."""
    config = retnet_config(d_model=32, num_layers=2, num_heads=2, vocab_size=260, ffn_dim=48, value_dim=64)
    model = build_model(config, dtype=torch.float32, device="cpu", seed=1, backend="chunkwise")
    folder = tmp_path_factory.mktemp("checkpoints") / "untrained"
    tokenizer = ByteTokenizer()
    described = Description(
        config=config, tokenizer="bytes", tokenizer_fingerprint=tokenizer.fingerprint, context_len=64
    )
    save_checkpoint(folder, described, dict(model.named_parameters()))
    return folder


@pytest.mark.parametrize("name", ["gpt2", "mamba"])
def test_a_model_of_transformers_continues_a_text_as_transformers_does(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    folder, tokenizer = save_hf_model(name, tmp_path / name), ByteTokenizer()
    options = ("--format", "hf", "--tokenizer", "bytes", "--max-tokens", "8")
    code, stdout, _ = run(str(folder), "--prompt", "sea", *options)
    assert code == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = [tokenizer.bos_token_id, *tokenizer.encode("sea")]
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    for _ in range(8):
        logits = theirs(torch.tensor([tokens])).logits[0, -1, : tokenizer.vocab_size]
        token = int(logits.argmax())
        if token in ends:
            break
        tokens.append(token)
    assert stdout == tokenizer.decode(tokens) + "\n"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("num_tokens", "expected"), [("8", 0), ("40", 1)])
def test_a_model_whose_cache_is_wrong_beyond_its_window_writes_no_such_text(
    num_tokens, expected, dtype, tmp_path
):
    pytest.importorskip("transformers", reason="needs the extra hf")
    folder = save_hf_model("gpt_neo", tmp_path / "gpt_neo")
    options = ("--format", "hf", "--tokenizer", "bytes", "--max-tokens", num_tokens, "--dtype", dtype)
    code, stdout, stderr = run(str(folder), "--prompt", "sea", *options)
    assert code == expected
    assert bool(stdout) == (expected == 0)
    assert ("differ from those of one pass" in stderr) == (expected == 1)


@needs_data
def test_a_trained_model_tells_a_story():
    code, stdout, stderr = run("stories260K", "--max-tokens", "60", "--data-dir", DATA)
    assert code == 0
    assert stdout.startswith(STORY)
    assert "first token after" in stderr
    assert "60 tokens, " in stderr


@needs_data
def test_the_prompt_is_part_of_the_text():
    folder = Path(DATA) / "stories260K"
    prompt = "Once upon a time, there was a little girl"
    code, stdout, _ = run(str(folder), "--prompt", prompt, "--max-tokens", "40")
    assert code == 0
    assert stdout.startswith(STORY[:80])


@needs_data
def test_the_end_of_a_story_is_the_end_of_the_text():
    _, stdout, stderr = run("stories260K", "--max-tokens", "500", "--data-dir", DATA, "--top-p", ".9")
    assert "<s>" not in stdout
    assert int(stderr.split(" s; ")[1].split()[0]) < 500


def test_the_prompt_may_come_on_standard_input(untrained):
    given = run(str(untrained), "--prompt", "Tōkyō", "--max-tokens", "5")
    assert run(str(untrained), "--prompt", "-", "--max-tokens", "5", input="Tōkyō\n".encode())[1] == given[1]
    code, _, stderr = run(str(untrained), "--prompt", "-", input=b"\xff\xfe")
    assert code == 2
    assert "is not UTF-8" in stderr


def test_the_speed_follows_the_text_on_a_line_of_its_own(untrained):
    done = CliRunner().invoke(app, ["generate", str(untrained), "--prompt", "a", "--max-tokens", "3"])
    assert done.output == f"{done.stdout}{done.stderr}"  # as a terminal shows both streams
    assert done.stdout.endswith("\n")
    assert done.stderr.startswith("prompt 2 tokens, ")
    assert done.stderr.count("\n") == 1


def test_draws_follow_the_seed(untrained):
    def draw(*words):
        return run(str(untrained), "--prompt", "a", "--max-tokens", "30", *words)[1]

    assert draw("--temperature", "1", "--seed", "4") == draw("--temperature", "1", "--seed", "4")
    assert draw("--temperature", "1", "--seed", "4") != draw("--temperature", "1", "--seed", "5")
    assert draw("--top-k", "1") == draw()
    assert draw("--top-k", "200", "--seed", "4") != draw()


def test_a_text_longer_than_those_of_the_training_is_remarked_on(untrained):
    code, _, stderr = run(str(untrained), "--prompt", "abc", "--max-tokens", "61")
    assert code == 0
    assert "65 tokens are more than the 64 that this model was trained on" in stderr
    assert "more than" not in run(str(untrained), "--prompt", "abc", "--max-tokens", "60")[2]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--temperature", "0", "--top-k", "5"], 2, "nothing is drawn"),
        (["--seed", "1"], 2, "at temperature 0 nothing is drawn"),
        (["--top-p", "2"], 2, "top-p 2.0"),
        (["--dtype", "float33"], 2, "unknown dtype 'float33'"),
        (["--format", "lama"], 2, "Did you mean 'llama'"),
        (["--tokenizer", "no-such"], 2, "unknown tokenizer 'no-such'"),
        (["--revision", "main"], 2, "has no revisions"),
        (["--device", "cuda:99"], 3, "cuda"),
        (["--max-tokens", "0"], 2, "max-tokens"),
        (["--seed", "99999999999999999999"], 2, "--seed"),
        (["--seed", "-1"], 2, "--seed"),
        (["--prompt", "\udcff"], 2, "is not UTF-8"),
    ],
)
def test_what_cannot_be_done_is_refused(untrained, words, code, message):
    found, stdout, stderr = run(str(untrained), "--prompt", "a", *words)
    assert (found, stdout) == (code, "")
    assert message in stderr


def test_quantised_weights_are_refused_on_a_gpu_too(untrained, tmp_path, monkeypatch):
    folder = shutil.copytree(untrained, tmp_path / "quantised")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight.to(torch.int32) for name, weight in weights.items()}, folder / "model.safetensors"
    )
    device = Device("meta", None)  # in place of a GPU
    monkeypatch.setattr("retbench.measure.devices.find_device", lambda asked: device)
    monkeypatch.setattr("retbench.measure.environment.use_device", lambda name: None)
    with pytest.raises(CheckpointError, match="quantised weights cannot be read here"):
        generate(str(folder), "x", max_tokens=1)


def test_another_tokenizer_than_that_of_the_training_is_refused(untrained, tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": None,
                "post_processor": None,
                "decoder": None,
                "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
            }
        ),
        encoding="utf-8",
    )
    code, _, stderr = run(str(untrained), "--tokenizer", str(tmp_path / "tokenizer.json"))
    assert code == 2
    assert "was trained with 'bytes', fingerprint" in stderr


def process(folder, *words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "retbench", "generate", str(folder), "--prompt", "a", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def test_text_comes_as_it_is_written_and_an_interrupt_ends_it(untrained):
    running = process(untrained, "--max-tokens", "1000000", "--temperature", "1")
    assert len(running.stdout.read(200)) == 200  # long before the end
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert stderr.decode().splitlines()[-1] == "retbench: interrupted"
    assert "Traceback" not in stderr.decode()


def test_a_reader_that_has_seen_enough_is_no_error(untrained):
    running = process(untrained, "--max-tokens", "1000000", "--temperature", "1")
    running.stdout.read(10)
    running.stdout.close()
    stderr = running.stderr.read().decode()
    running.stderr.close()
    assert running.wait(timeout=60) == 0
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@given(before=TEXTS, text=TEXTS)
def test_bytes_become_whole_characters(before, text):
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer, tokenizer.encode(before))
    pieces = [stream.add(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.end() == text
    assert all(piece == "" or piece in text for piece in pieces)
    # nothing certain is held back: at the end of each character all of it was shown
    shown = 0
    for character in text:
        shown += len(character.encode())
        if "�" not in text:
            assert len("".join(pieces[:shown]).encode()) == shown


@given(tokens=st.lists(st.integers(0, 256), max_size=80))
def test_bytes_that_are_no_text_are_shown_as_they_decode(tokens):
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer, [256])
    shown = ""
    for token in tokens:
        shown += stream.add(token)
    assert shown + stream.end() == tokenizer.decode(tokens)


@needs_data
@pytest.mark.parametrize("name", ["gpt2", "mistral", "stories260K/tok512.bin"])
def test_every_kind_of_tokenizer_streams_what_it_decodes(name):
    pytest.importorskip("sentencepiece" if name == "mistral" else "tokenizers")
    tokenizer = load_tokenizer(name, data_dir=Path(DATA))
    text = "Tōkyō: 東京、 a café 🎉🎉 \n\n  indented\tand on it goes, " * 3
    tokens = tokenizer.encode(text)
    stream = TextStream(tokenizer, tokens[:5])
    pieces = [stream.add(token) for token in tokens[5:]]
    shown = tokenizer.decode(tokens[:5]) + "".join(pieces) + stream.end()
    assert shown == tokenizer.decode(tokens)
    assert not any("�" in piece for piece in pieces)
    assert sum(map(bool, pieces)) > len(pieces) / 2


@needs_data
@pytest.mark.parametrize("name", ["mistral", "stories260K/tok512.bin"])
@pytest.mark.parametrize("num_before", range(4))
def test_a_long_run_of_bytes_streams_as_whole_characters(name, num_before):
    pytest.importorskip("sentencepiece" if name == "mistral" else "tokenizers")
    tokenizer = load_tokenizer(name, data_dir=Path(DATA))
    before, text = "Lamas: " + "🫠" * num_before, "🫠ꙮ" * 20 + " all of them"
    known = tokenizer.encode(before)
    tokens = tokenizer.encode(before + text)
    assert tokens[: len(known)] == known
    stream = TextStream(tokenizer, known)
    pieces = [stream.add(token) for token in tokens[len(known) :]]
    assert "".join(pieces) + stream.end() == text


def test_a_run_of_bytes_that_is_replaced_until_it_is_whole_is_held_back():
    decoders = pytest.importorskip("tokenizers.decoders")
    decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse()]
    )  # as that of Llama 2's tokenizer.json

    class Bytes(ByteTokenizer):
        def decode(self, tokens):
            return decoder.decode([f"<0x{token:02X}>" for token in tokens])

    text = "🫠ꙮ" * 20
    stream = TextStream(Bytes(), list("🫠ꙮ🫠".encode()))
    pieces = [stream.add(token) for token in text.encode()]
    assert [piece for piece in pieces if piece] == list(text)
