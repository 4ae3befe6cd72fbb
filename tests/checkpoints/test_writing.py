"""A model written in another library's format is loaded by that library, and gives the same logits."""

import io
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.peers import fla_retnet
from retbench.architectures.configs import ModelConfig
from retbench.architectures.retnet import retnet_config
from retbench.architectures.transformer import transformer_config
from retbench.checkpoints.format import Description, Names, map_decoder
from retbench.checkpoints.loading import decoder_rows
from retbench.checkpoints.reading import read_checkpoint
from retbench.checkpoints.writing import export_checkpoint, split_weights
from retbench.cli import app
from retbench.data.tokenizers import load_tokenizer
from retbench.errors import ConfigError, UnsupportedError
from retbench.mixers.softmax_attention import RotaryScaling
from retbench.models.equivalence import relative_error
from tests.checkpoints.stored import FLA, LLAMA, load, logits_of, save_model, tokens_for, weighty

LIMIT = 1e-5


def store(folder: Path, config: ModelConfig, **options: Any) -> Path:
    """Write a model of ours as `retbench train` does."""
    save_model(folder / "ours", weighty(config), **{"tokenizer": None, "context_len": 64, **options})
    return folder / "ours"


@pytest.mark.peers
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_kv_heads": 6},
        {"rotary_base": 500_000.0},
        {"norm_eps": 1e-3},
        {"rotary_scaling": RotaryScaling(factor=4.0, original_len=32)},
        {"rotary_scaling": RotaryScaling(factor=4.0)},
    ],
    ids=str,
)
def test_transformers_loads_a_transformer_and_gives_its_logits(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM

    sizes = {
        "d_model": 48,
        "num_layers": 2,
        "num_heads": 6,
        "num_kv_heads": 2,
        "vocab_size": 97,
        "ffn_dim": 40,
    }
    ours = store(tmp_path, transformer_config(**sizes | change))
    assert export_checkpoint(read_checkpoint(str(ours)), tmp_path / "theirs") == "llama"
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    tokens = tokens_for(LLAMA)
    with torch.inference_mode():
        found = peer(tokens).logits
    assert relative_error(found, logits_of(load(ours), tokens)) < LIMIT
    assert peer.config.max_position_embeddings == 64


@pytest.mark.peers
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_loads_a_transformer_whose_longest_context_is_not_known(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ours = store(tmp_path, LLAMA, context_len=None)
    export_checkpoint(read_checkpoint(str(ours)), tmp_path / "theirs")
    assert read_checkpoint(str(tmp_path / "theirs")).context_len is None
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    with torch.inference_mode():
        found = peer(tokens_for(LLAMA)).logits
    assert relative_error(found, logits_of(load(ours), tokens_for(LLAMA))) < LIMIT


def test_a_retnet_gives_the_logits_of_flas_published_formula(tmp_path: Path) -> None:
    ours = store(tmp_path, FLA)
    assert export_checkpoint(read_checkpoint(str(ours)), tmp_path / "theirs") == "fla"
    weights = {name: one.double() for name, one in load_file(tmp_path / "theirs/model.safetensors").items()}
    assert weights.keys() == fla_retnet.draw_weights(FLA, seed=1).keys()
    tokens = tokens_for(FLA)
    found = fla_retnet.logits(weights, FLA, tokens[0])[None]
    assert relative_error(logits_of(load(ours, dtype=torch.float64), tokens), found) < LIMIT


WRITE = """
import sys, time
from pathlib import Path
from retbench.files import atomic_folder, sole_writer
folder = Path(sys.argv[1])
with sole_writer(folder), atomic_folder(folder) as draft:
    (draft / "other").write_text("of another model")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_two_processes_do_not_write_one_folder_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    ours, exported = read_checkpoint(str(store(tmp_path, LLAMA))), tmp_path / "exported" / "model"
    with subprocess.Popen([sys.executable, "-c", WRITE, exported], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            with pytest.raises(UnsupportedError, match="another process is writing it"):
                export_checkpoint(ours, exported)
            assert not exported.exists()
        finally:
            other.kill()
    export_checkpoint(ours, exported)
    assert [one.name for one in exported.parent.iterdir()] == ["model"]
    assert {one.name for one in exported.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("config", [LLAMA, FLA], ids=["llama", "fla"])
def test_what_is_written_is_read_back_bit_by_bit(tmp_path: Path, config: ModelConfig) -> None:
    ours = store(tmp_path, config)
    export_checkpoint(read_checkpoint(str(ours)), tmp_path / "theirs")
    assert len({path.stat().st_mode for path in (tmp_path / "theirs").iterdir()}) == 1
    info = read_checkpoint(str(tmp_path / "theirs"))
    assert (info.config, info.context_len, info.weights_dtype) == (config, 64, "float32")
    mine, theirs = (dict(load(folder).named_parameters()) for folder in (ours, tmp_path / "theirs"))
    assert all(torch.equal(theirs[name], weight) for name, weight in mine.items())


def restore_as(folder: Path, dtypes: dict[int, torch.dtype]) -> dict[str, Tensor]:
    """Store the weights of an exported folder in other dtypes, by their number of axes; return them."""
    path = folder / "model.safetensors"
    # Older versions of safetensors read a file as they are asked for values, and it is overwritten here.
    weights = {
        name: one.to(dtypes.get(one.dim(), one.dtype), copy=True) for name, one in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    return weights


@pytest.mark.parametrize("config", [LLAMA, FLA], ids=["llama", "fla"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_no_value_of_a_file_with_several_dtypes_is_rounded(
    tmp_path: Path, config: ModelConfig, dtype: torch.dtype
) -> None:
    export_checkpoint(read_checkpoint(str(store(tmp_path, config))), tmp_path / "mixed")
    stored = restore_as(tmp_path / "mixed", {2: dtype})  # vectors stay in float32
    export_checkpoint(read_checkpoint(str(tmp_path / "mixed")), tmp_path / "again")
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(found[name].double(), one.double()) for name, one in stored.items())
    assert {one.dtype for one in found.values() if one.dim() == 2} == {dtype}
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["torch_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")], ids=str)
def test_quantised_weights_are_not_exported(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    export_checkpoint(read_checkpoint(str(store(tmp_path, LLAMA))), tmp_path / "quantised")
    restore_as(tmp_path / "quantised", {2: dtype})
    result = CliRunner().invoke(app, ["export", str(tmp_path / "quantised"), str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"has dtype {name}, expected one of float64, float32, bfloat16, float16" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_retnet_without_a_gate_has_the_norm_of_its_own_kernel(tmp_path: Path) -> None:
    sizes = {"d_model": 48, "num_layers": 1, "num_heads": 3, "vocab_size": 97, "ffn_dim": 40, "value_dim": 96}
    ours = store(tmp_path, retnet_config(**sizes, swish_gate=False))
    export_checkpoint(read_checkpoint(str(ours)), tmp_path / "theirs")
    names = load_file(tmp_path / "theirs/model.safetensors").keys()
    assert "model.layers.0.attn.g_norm.weight" in names
    assert not {name for name in names if "g_proj" in name or "swish" in name}


@given(seed=st.integers(0, 2**32))
def test_adjacent_rotary_pairs_are_written_as_they_are_read(seed: int) -> None:
    plan = map_decoder(Description(config=LLAMA), Names(), interleaved=True)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.rand(sum(part.shape[0] for part in parts), *parts[0].shape[1:], generator=generator)
        for name, parts in plan.items()
    }
    tensors = split_weights(plan, weights)
    for name, parts in plan.items():
        read = torch.cat([decoder_rows(tensors[part.name], part) for part in parts])
        assert torch.equal(read, weights[name])


def write_tokenizer(folder: Path, name: str) -> Path:
    """Write a tokenizer under a name of its kind, with the other files of it, and return its path."""
    folder.mkdir()
    path = folder / name
    if name == "encoder.json":
        path.write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}', encoding="utf-8")
        (folder / "vocab.bpe").write_text("#version: 0.2\na b\n", encoding="utf-8")
    elif name.endswith(".json"):
        special = [AddedToken(token, special=True) for token in ("<s>", "</s>", "<begin>")]
        tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
        tokenizer.add_special_tokens(special)
        tokenizer.save(str(path))
        settings = {"bos_token": {"content": "<begin>"}, "eos_token": None}
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}', encoding="utf-8")
        (folder / "special_tokens_map.json").write_text(json.dumps(settings), encoding="utf-8")
    else:
        sentencepiece = pytest.importorskip("sentencepiece", reason="reads these files")
        pieces = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d"]), model_writer=pieces, vocab_size=8, minloglevel=2
        )
        path.write_bytes(pieces.getvalue())
    return path


TOKENIZERS = {
    "tokenizer.json": {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"},
    "20B_tokenizer.json": {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"},
    "encoder.json": {"vocab.json", "merges.txt", "tokenizer_config.json"},
    "tokenizer.model.v1": {"tokenizer.model"},
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokenizer_goes_with_the_model(tmp_path: Path, name: str) -> None:
    path = write_tokenizer(tmp_path / "tokenizer", name)
    ours = store(tmp_path, LLAMA, tokenizer=str(path))
    done = CliRunner().invoke(app, ["export", str(ours), str(tmp_path / "theirs")])
    assert done.exit_code == 0, done.output
    assert "2 layers in the format llama, with its tokenizer in" in done.stdout
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert names == {"config.json", "model.safetensors", *TOKENIZERS[name]}
    raw = json.loads((tmp_path / "theirs/config.json").read_text(encoding="utf-8"))
    assert raw["architectures"] == ["LlamaForCausalLM"]
    expected = load_tokenizer(str(path))
    assert (raw["bos_token_id"], raw["eos_token_id"]) == (expected.bos_token_id, expected.eos_token_id)
    for place in (tmp_path / "theirs", tmp_path / "again"):
        copy = read_checkpoint(str(place)).tokenizer
        assert copy is not None
        found = load_tokenizer(copy)
        assert found.fingerprint == expected.fingerprint
        assert (found.bos_token_id, found.eos_token_id) == (expected.bos_token_id, expected.eos_token_id)
        if not (tmp_path / "again").exists():  # the exported model is exported once more
            export_checkpoint(read_checkpoint(str(place)), tmp_path / "again")


TEXT = "It's  2,048 tokens\n\tof “naïve” text.<|endoftext|> Next"


@pytest.mark.peers
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize(
    ("end", "settings"),
    [("<|endoftext|>", {"model_max_length": 64}), (None, None)],
    ids=["whole", "without the end"],
)
def test_transformers_reads_gpt2s_files_beside_an_exported_llama(
    tmp_path: Path, settings: dict[str, int] | None, end: str | None
) -> None:
    """The real files, and a vocabulary without the token that ends a text."""
    from transformers import AutoTokenizer

    if not os.environ.get("RETBENCH_DATA"):
        pytest.skip("RETBENCH_DATA names no folder of real data")
    folder = tmp_path / "tokenizer"
    real = Path(os.environ["RETBENCH_DATA"]) / "gpt2_tokenizer"
    shutil.copytree(real, folder, copy_function=shutil.copyfile)
    if end is None:
        vocabulary = json.loads((folder / "encoder.json").read_bytes())
        del vocabulary["<|endoftext|>"]
        (folder / "encoder.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ours = store(tmp_path, LLAMA.model_copy(update={"vocab_size": 50257}), tokenizer=str(folder))
    export_checkpoint(read_checkpoint(str(ours)), tmp_path / "theirs")
    found, expected = AutoTokenizer.from_pretrained(tmp_path / "theirs"), load_tokenizer(str(folder))
    assert found(TEXT)["input_ids"] == expected.encode(TEXT)
    assert (found.bos_token, found.eos_token) == (end, end)
    assert (found.bos_token_id, found.eos_token_id) == (expected.bos_token_id, expected.eos_token_id)
    assert settings is None or found.model_max_length == 64


@pytest.mark.parametrize(("tokenizer", "special"), [("bytes", 256), (None, None), ("/not/here", None)])
def test_the_tokens_around_a_text_are_never_the_other_librarys_own(
    tmp_path: Path, tokenizer: str | None, special: int | None
) -> None:
    ours = store(tmp_path, LLAMA, tokenizer=tokenizer)
    export_checkpoint(read_checkpoint(str(ours)), tmp_path / "theirs")
    raw = json.loads((tmp_path / "theirs/config.json").read_text(encoding="utf-8"))
    assert (raw["bos_token_id"], raw["eos_token_id"]) == (special, special)


def test_a_tokenizer_in_a_folder_goes_with_the_model_and_one_that_is_gone_is_named(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer", "encoder.json")
    ours = store(tmp_path, LLAMA, tokenizer=str(path.parent))
    done = CliRunner().invoke(app, ["export", str(ours), str(tmp_path / "theirs")])
    assert "with its tokenizer in vocab.json" in done.stdout
    path.parent.rename(tmp_path / "elsewhere")
    done = CliRunner().invoke(app, ["export", str(ours), str(tmp_path / "without")])
    assert done.exit_code == 0
    assert f"give `--tokenizer {path.parent}` to `retbench generate`" in done.stdout


def test_a_tokenizer_that_has_changed_is_not_exported(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer", "tokenizer.json")
    trained_with = load_tokenizer(str(path)).fingerprint
    ours = store(tmp_path, LLAMA, tokenizer=str(path), tokenizer_fingerprint=trained_with)
    (path.parent / "special_tokens_map.json").unlink()
    with pytest.raises(ConfigError, match=f"has the fingerprint {trained_with}, and .* Restore those files"):
        export_checkpoint(read_checkpoint(str(ours)), tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_models_that_no_format_holds_are_refused(tmp_path: Path) -> None:
    sizes = {
        "d_model": 48,
        "num_layers": 1,
        "num_heads": 3,
        "num_kv_heads": 3,
        "vocab_size": 97,
        "ffn_dim": 40,
    }
    gpt = read_checkpoint(str(store(tmp_path, transformer_config(**sizes, variant="gpt"))))
    with pytest.raises(ConfigError, match="a transformer of variant 'gpt' cannot be written as"):
        export_checkpoint(gpt, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_the_decays_of_trained_retnets_are_named_as_what_fla_lacks(tmp_path: Path) -> None:
    sizes = {"d_model": 48, "num_layers": 1, "num_heads": 3, "vocab_size": 97, "ffn_dim": 40, "value_dim": 96}
    for decay, code in (("paper", 2), ("eq8", 0)):
        ours = store(tmp_path / decay, retnet_config(**sizes, decay=decay))
        done = CliRunner().invoke(app, ["export", str(ours), str(tmp_path / decay / "theirs")])
        assert (done.exit_code, "decay = 'eq8', not 'paper'" in done.stderr) == (code, code == 2), done.output


def test_a_folder_with_files_and_an_unknown_format_are_refused(tmp_path: Path) -> None:
    info = read_checkpoint(str(store(tmp_path, LLAMA)))
    with pytest.raises(ConfigError, match="is not an empty folder"):
        export_checkpoint(info, tmp_path)
    with pytest.raises(ConfigError, match="cannot be written as fla"):
        export_checkpoint(info, tmp_path / "theirs", format="fla")
    with pytest.raises(ConfigError, match="Known: auto, fla, llama"):
        export_checkpoint(info, tmp_path / "theirs", format="gguf")


def test_the_current_folder_is_no_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell in it would stand in a folder that was replaced."""
    ours = store(tmp_path, LLAMA)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    done = CliRunner().invoke(app, ["export", str(ours), "."])
    assert (done.exit_code, "is no new folder" in done.stderr) == (2, True), done.output
    assert not list(Path().iterdir())


def test_a_folder_that_cannot_be_made_is_an_impossible_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    done = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "file" / "theirs")])
    assert done.exit_code == 2
    assert "cannot be written to: Not a directory" in done.stderr
