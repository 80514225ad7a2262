"""The digest of tensors: one spelling of names, dtypes and shapes, so that any two compare."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def tensor_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256, hexadecimal, of tensors in the order given.

    Of each its name, dtype as torch spells it, shape, and the bytes of its elements row by row.

    Args:
        tensors: Names and tensors; a name may be empty.
    """
    found = hashlib.sha256()
    for name, tensor in tensors:
        kept = tensor.detach().cpu().contiguous()
        found.update(f"{name} {kept.dtype} {tuple(kept.shape)} ".encode())
        found.update(kept.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
