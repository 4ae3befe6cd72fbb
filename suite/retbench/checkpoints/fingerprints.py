"""A short hash of tensors' content: equal where names, dtypes, shapes and every bit are."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def fingerprint_tensors(tensors: "Iterable[tuple[str, Tensor]]") -> str:
    """12 hexadecimal digits of SHA-256 over each tensor's name, dtype, shape and bytes.

    Args:
        tensors: Names and tensors, sorted by name; each is used once, so they may be read as they come.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """12 hex digits over the bytes of files, in the order given; for weights whose format keeps no hash of its own."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
