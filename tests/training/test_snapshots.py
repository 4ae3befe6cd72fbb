from pathlib import Path

import pytest
import torch
from torch import nn

from retbench.config.training import RECIPES
from retbench.files import DRAFT
from retbench.ops.linear import Linear
from retbench.training.optimization import make_optimizer, set_rate
from retbench.training.snapshots import find_snapshot, gather, prune, save_snapshot, snapshot_paths


def make_model(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
    """Return a model with every kind of weight, a transposed one included, after one step of its optimiser."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(7, 8), Linear(8, 6), nn.RMSNorm(6))
    nn.init.normal_(model[1].weight)
    optimizer = make_optimizer(model, RECIPES["paper"])
    step(model, optimizer, seed)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.AdamW, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    (model(torch.randint(7, (3, 5))) * torch.randn(3, 5, 6)).sum().backward()
    set_rate(optimizer, 0.1)
    optimizer.step()


def test_a_restored_run_takes_the_same_step(tmp_path: Path) -> None:
    model, optimizer = make_model(0)
    save_snapshot(tmp_path, 1, gather(model, optimizer), {"step": 1})
    other, its_optimizer = make_model(1)
    found = find_snapshot(tmp_path, pytest.fail)
    assert found is not None
    assert found.state == {"step": 1}
    found.restore(other, its_optimizer)
    step(model, optimizer, 2)
    step(other, its_optimizer, 2)
    for weight, its in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, its)
        assert weight.stride() == its.stride()


class OneWeight(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.full((9,), value))


def save(folder: Path, *steps: int) -> None:
    for number in steps:
        save_snapshot(folder, number, {"weight:x": OneWeight(float(number)).x.detach()}, {"step": number})


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_snapshot_gives_way_to_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 8, 10, 12)
    path = snapshot_paths(tmp_path)[-1] / name
    content = bytearray(path.read_bytes())
    match damage:
        case "flip":
            content[-9] ^= 1
            path.write_bytes(content)
        case "truncate":
            path.write_bytes(content[:-1])
        case "remove":
            path.unlink()
    notes: list[str] = []
    found = find_snapshot(tmp_path, notes.append)
    assert found is not None
    assert found.state == {"step": 10}
    restored = OneWeight(0.0)
    found.restore(restored, torch.optim.SGD(restored.parameters()))
    assert restored.x.tolist() == [10] * 9
    assert len(notes) == 1
    assert "000012 is damaged" in notes[0]


def test_without_a_whole_snapshot_there_is_none(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (snapshot_paths(tmp_path)[0] / "state.json").write_text("{}")
    notes: list[str] = []
    assert find_snapshot(tmp_path, notes.append) is None
    assert len(notes) == 1


def test_the_last_snapshots_are_kept_and_drafts_removed(tmp_path: Path) -> None:
    save(tmp_path, 999_999, 1_000_000, 1_000_001)
    (tmp_path / f"{DRAFT}000007").mkdir()
    prune(tmp_path, 2)
    assert [path.name for path in snapshot_paths(tmp_path)] == ["1000000", "1000001"]
    assert len(list(tmp_path.iterdir())) == 2
