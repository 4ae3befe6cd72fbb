"""Our own checkpoints: what is read is what was saved, and a checkpoint is whole or not there."""

import json
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retbench.checkpoints.reading import read_checkpoint
from retbench.checkpoints.weights import fingerprint_tensors
from retbench.errors import CheckpointError, ConfigError, StorageError
from tests.checkpoints.stored import change_config, load, logits_of, save_model, tokens_for, weighty
from tests.models.cases import CASES, config_of


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_is_what_was_saved(tmp_path, case):
    model = weighty(config_of(case))
    fingerprint = save_model(tmp_path / "saved", model)
    info = read_checkpoint(str(tmp_path / "saved"))
    assert info.config == model.config
    assert info.weights_fingerprint == fingerprint
    again = load(tmp_path / "saved")
    for (name, saved), (other, read) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(saved, read), name
        assert saved.stride() == read.stride(), f"{name}: laid out for decoding"
    tokens = tokens_for(model.config)
    assert torch.equal(logits_of(model, tokens), logits_of(again, tokens))
    assert not again.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_kept_in_their_dtype(tmp_path, dtype):
    model = weighty(config_of("fla"), dtype=dtype)
    save_model(tmp_path / "saved", model)
    assert read_checkpoint(str(tmp_path / "saved")).weights_dtype == str(dtype).removeprefix("torch.")
    assert {weight.dtype for weight in load_file(tmp_path / "saved" / "model.safetensors").values()} == {
        dtype
    }
    again = load(tmp_path / "saved", dtype=torch.float64)
    assert again.dtype == torch.float64
    assert torch.equal(again.norm.weight, model.norm.weight.double())


def test_what_belongs_to_a_checkpoint_is_kept(tmp_path):
    save_model(
        tmp_path / "saved",
        weighty(config_of("fla")),
        tokenizer="bytes",
        tokenizer_fingerprint="0123456789ab",
        context_len=2048,
        metadata={"step": 7, "corpus": {"name": "python", "fingerprint": "f00d"}},
    )
    info = read_checkpoint(str(tmp_path / "saved"))
    assert (info.tokenizer, info.tokenizer_fingerprint, info.context_len) == ("bytes", "0123456789ab", 2048)
    assert info.metadata == {"step": 7, "corpus": {"name": "python", "fingerprint": "f00d"}}
    assert (info.format, info.source, info.revision) == ("retbench", str(tmp_path / "saved"), None)


def test_the_fingerprint_is_of_names_dtypes_shapes_and_bits():
    def of(**tensors):
        return fingerprint_tensors(sorted(tensors.items()))

    weight = torch.arange(6.0).view(2, 3)
    assert of(a=weight) == of(a=weight.t().contiguous().t())
    assert len(of(a=weight)) == 12
    changed = weight.clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(10.0))
    others = [
        of(a=changed),
        of(b=weight),
        of(a=weight.view(3, 2)),
        of(a=weight.double()),
        of(a=weight.bfloat16()),
    ]
    assert len({of(a=weight), *others}) == 6


def test_a_newer_checkpoint_replaces_the_older(tmp_path):
    folder = tmp_path / "saved"
    save_model(folder, weighty(config_of("fla"), seed=1))
    (folder / "stray.txt").write_text("of the older one", encoding="utf-8")
    newer = save_model(folder, weighty(config_of("fla"), seed=2))
    assert read_checkpoint(str(folder)).weights_fingerprint == newer
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_nothing_else_is_ever_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ConfigError, match="other than a checkpoint of retbench"):
        save_model(tmp_path, weighty(config_of("fla")))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="other than a checkpoint of retbench"):
        save_model(tmp_path, weighty(config_of("fla")))
    with pytest.raises(ConfigError, match="other than a checkpoint of retbench"):
        save_model(tmp_path / "thesis.tex", weighty(config_of("fla")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "thesis.tex"]


@pytest.fixture
def full_disk():
    """Let writing fail part of the way, as on a full disk."""
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


def test_a_full_disk_leaves_what_was_there(tmp_path, full_disk):
    folder = tmp_path / "saved"
    older, newer = (weighty(config_of("fla"), seed=seed) for seed in (1, 2))
    fingerprint = save_model(folder, older)
    with pytest.raises(StorageError, match="^" + re.escape(f"{folder}: cannot be written: ")), full_disk():
        save_model(folder, newer)
    assert read_checkpoint(str(folder)).weights_fingerprint == fingerprint
    load(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_move_that_fails_puts_the_older_back(tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    older = save_model(folder, weighty(config_of("fla"), seed=1))
    rename = Path.rename

    def fail(self, target):
        if self.name == ".draft-saved":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        save_model(folder, weighty(config_of("fla"), seed=2))
    assert read_checkpoint(str(folder)).weights_fingerprint == older
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_one_changed_bit_is_noticed(tmp_path):
    save_model(tmp_path / "saved", weighty(config_of("fla")))
    path = tmp_path / "saved" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(
        CheckpointError, match=r"fingerprint [0-9a-f]{12}, its configuration says [0-9a-f]{12}"
    ) as caught:
        load(tmp_path / "saved")
    assert str(caught.value).startswith(str(path))


def test_weights_of_another_model_are_noticed(tmp_path):
    save_model(tmp_path / "saved", weighty(config_of("fla")))
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    change_config(tmp_path / "saved", config=config["config"] | {"vocab_size": 300})
    with pytest.raises(
        CheckpointError, match=r"'embedding.weight' has shape \(1024, \d+\), expected \(300, \d+\)"
    ):
        load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 3}, "format_version is 3, this retbench reads up to 2. Use a newer one"),
        ({"surprise": 1}, "surprise: there is no such field"),
        ({"weights_fingerprint": None}, "weights_fingerprint"),
        ({"config": {"architecture": "mamba"}}, "config"),
        ({"metadata": {"training_fingerprint": "0", "num_tokens": "many"}}, "num_tokens"),
        ({"metadata": {"training_fingerprint": "0", "corpus": ["a"]}}, "corpus"),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_ours_is_refused(tmp_path, fields, message):
    save_model(tmp_path / "saved", weighty(config_of("fla")))
    change_config(tmp_path / "saved", **fields)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(str(tmp_path / "saved"))


def test_metadata_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        save_model(tmp_path / "saved", weighty(config_of("fla")), metadata={"loss": float("nan")})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_model(tmp_path / "saved", weighty(config_of("fla")), metadata={"path": tmp_path})
    assert list(tmp_path.iterdir()) == []
