"""Comparing what the uncut and the cut model compute: equal to the bit, or refused."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from flower_split.errors import FlowerSplitError, UnsupportedFamilyError

Results = Mapping[str, Tensor | None]


def compare(where: str, expected: Results, got: Results) -> None:
    """Raise `UnsupportedFamilyError` at the first tensor of `expected` that `got` has otherwise."""
    for what, tensor in expected.items():
        other = got.get(what)
        if tensor is None or other is None:
            if tensor is not other:
                lacking = "uncut" if tensor is None else "cut"
                raise UnsupportedFamilyError(f"{where}: the {lacking} model has no {what}")
        elif tensor.shape != other.shape:
            raise UnsupportedFamilyError(
                f"{where}: the {what} has the shape {tuple(other.shape)}, the uncut model's "
                f"{tuple(tensor.shape)}"
            )
        elif not torch.equal(tensor, other):
            if not bool(torch.isfinite(tensor).all()):
                raise UnsupportedFamilyError(
                    f"{where}: the uncut model's {what} is not finite, so that nothing can be "
                    "compared"
                )
            gap = float((tensor - other).abs().max())
            raise UnsupportedFamilyError(
                f"{where}: the {what} differs from the uncut model's by {gap:.3g}"
            )


@contextmanager
def failing_at(where: str) -> Iterator[None]:
    """Name where the cut model failed.

    Raises:
        UnsupportedFamilyError: anything was raised inside.
    """
    try:
        yield
    except UnsupportedFamilyError as error:
        if str(error).startswith(where):
            raise
        raise UnsupportedFamilyError(f"{where}: {error}") from error
    except FlowerSplitError as error:
        raise UnsupportedFamilyError(f"{where}: {error}") from error
    except Exception as error:  # whatever the stock code raises
        raise UnsupportedFamilyError(
            f"{where}: the stock code of the cut model fails with {type(error).__name__}: {error}"
        ) from error
