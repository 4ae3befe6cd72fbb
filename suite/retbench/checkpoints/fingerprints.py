"""A short hash of tensors' content: equal where names, dtypes, shapes and every bit are."""

import hashlib
from collections.abc import Iterable
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
