"""Communication and snapshots of two processes, which torchrun starts; each writes its results as JSON.

python -m torch.distributed.run --nproc-per-node 2 -m tests.training.two_processes FOLDER
"""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from retbench.architectures.retnet import retnet_config
from retbench.config.training import RECIPES
from retbench.errors import RetbenchError
from retbench.models.build import build_model
from retbench.models.decoder import Decoder
from retbench.training.optimization import clip_gradients, make_contiguous, make_optimizer, set_rate
from retbench.training.ranks import Launch, OtherRankFailedError, Ranks, joined
from retbench.training.sharding import full_weights, shard
from retbench.training.snapshots import find_snapshot, gather, save_snapshot

CONFIG = retnet_config(d_model=16, num_layers=2, num_heads=2, vocab_size=23, ffn_dim=24, value_dim=32)


def make_run(seed: int, ranks: Ranks) -> tuple[Decoder, torch.optim.AdamW]:
    """Return a model and its optimiser as training builds them, sharded over the processes."""
    model = build_model(CONFIG, dtype=torch.float32, device="cpu", seed=seed, backend="chunkwise")
    make_contiguous(model)
    if ranks.size > 1:
        shard(model, ranks.size)
    return model, make_optimizer(model, RECIPES["paper"])


def step(model: Decoder, optimizer: torch.optim.AdamW, number: int, ranks: Ranks) -> float:
    """Take one step on this process's share of random rows; return the norm of the gradients."""
    generator = torch.Generator().manual_seed(number)
    rows = torch.randint(CONFIG.vocab_size, (4, 9), generator=generator)
    share = rows.chunk(ranks.size)[ranks.rank]
    optimizer.zero_grad()
    logits = model(share[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), share[:, 1:].flatten()).backward()
    norm = float(clip_gradients(model, 0.5))
    set_rate(optimizer, 1e-3)
    optimizer.step()
    return norm


def outcome(call: Callable[[], object]) -> str:
    """Return a description of a call's result or error."""
    try:
        return f"returned {call()}"
    except OtherRankFailedError:
        return "the other failed"
    except (RetbenchError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def refuse(text: str) -> None:
    raise ValueError(text)


def agreements(ranks: Ranks) -> dict[str, Any]:
    """Call every method by which processes communicate."""
    rank = ranks.rank

    def waits() -> str:
        for _ in range(3):
            ranks.hold_on()
        return "after waiting"

    return {
        "leads": ranks.leads,
        "lead": outcome(lambda: ranks.lead(lambda: f"of {rank}")),
        "lead waits": outcome(lambda: ranks.lead(waits)),
        "lead fails": outcome(lambda: ranks.lead(lambda: refuse("in the lead"))),
        "together": outcome(lambda: ranks.together(lambda: f"of {rank}")),
        "second fails": outcome(lambda: ranks.together(lambda: refuse("second") if rank else None)),
        "both fail": outcome(lambda: ranks.together(lambda: refuse(f"of {rank}"))),
        "any": [ranks.any(rank == 1), ranks.any(False)],
        "mean": ranks.mean(torch.tensor([float(rank), 2.0])).tolist(),
        "gather": ranks.gather(f"of {rank}"),
    }


def storage(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Test snapshots of a sharded model: restored, damaged, and on a disk that is full for the second process."""
    model, optimizer = make_run(0, ranks)
    norms = [step(model, optimizer, 1, ranks)]
    save_snapshot(folder, 1, gather(model, optimizer), {"step": 1}, ranks)
    norms.append(step(model, optimizer, 2, ranks))
    torch.save(full_weights(model, keep=True), folder / f"weights-{ranks.rank}.pt")
    save_snapshot(folder, 2, gather(model, optimizer), {"step": 2}, ranks)
    ranks.lead(lambda: _damage(folder / "000002"))
    notes: list[str] = []
    other, its_optimizer = make_run(1, ranks)
    found = find_snapshot(folder, notes.append, ranks)
    assert found is not None
    found.restore(other, its_optimizer)
    step(other, its_optimizer, 2, ranks)
    same = all(
        torch.equal(weight, expected)
        for weight, expected in zip(
            full_weights(other, keep=True).values(), full_weights(model, keep=True).values(), strict=True
        )
    )
    return {
        "norms": norms,
        "restored": found.state,
        "notes": notes,
        "same step": same,
        "full disk": outcome(lambda: _on_full_disk(ranks, folder, model, optimizer)),
        "left": ranks.lead(lambda: sorted(path.name for path in folder.iterdir())),
    }


def _damage(path: Path) -> None:
    """Flip a bit in the second process's part of a snapshot."""
    file = sorted(path.glob("*.safetensors"))[-1]
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def _on_full_disk(ranks: Ranks, folder: Path, model: Decoder, optimizer: torch.optim.AdamW) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ranks.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        save_snapshot(folder, 3, gather(model, optimizer), {"step": 3}, ranks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def main(folder: Path) -> None:
    """Write the results of this process."""
    with joined(Launch.from_environment(), on_cpu=True) as ranks:
        results = agreements(ranks) | storage(ranks, folder)
        (folder / f"result-{ranks.rank}.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
