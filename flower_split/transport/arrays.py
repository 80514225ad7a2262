"""Flower's arrays as a peer sent them, decoded once they are what their headers claim.

An `Array` is the file that `numpy.save` writes (NEP 1), beside its dtype and shape in words. Flower
reads it with `numpy.load`, which allocates what the file's own header claims, and raises what it
likes.
"""

import math
from io import BytesIO
from tokenize import TokenError
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from flower_split.errors import AdapterError

NUMPY = "numpy.ndarray"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_LONGEST = 120


class SentArray(Protocol):
    """Flower's `Array`."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


def shortened(text: object) -> str:
    """`text` as it may stand in an error, however long a peer made it."""
    written = str(text)
    return written if len(written) <= _LONGEST else f"{written[:_LONGEST]}…"


def read_array(name: str, array: SentArray) -> NDArray[Any]:
    """A copy of the values of `array`.

    Nothing is allocated before its bytes are found to be as many as its shape and dtype need.

    Args:
        name: Its name, for errors.
        array: Of a message.

    Raises:
        AdapterError: it is no numeric array, or another than its fields say.
    """
    name = shortened(name)
    if array.stype != NUMPY:
        raise AdapterError(f"{name} is a {shortened(array.stype)!r}, expected a {NUMPY!r}")
    stream = BytesIO(array.data)
    try:
        shape, fortran, dtype = _HEADERS[npy.read_magic(stream)](stream)
        size = math.prod(shape) * dtype.itemsize
    except (
        *(ValueError, TypeError, KeyError, AttributeError, OverflowError),
        *(SyntaxError, TokenError, RecursionError, MemoryError),
    ) as error:
        raise AdapterError(
            f"{name} has bytes that are no array of numpy.save's ({type(error).__name__})"
        ) from error
    if dtype.kind not in "biuf":
        raise AdapterError(f"{name} is of dtype {shortened(dtype)}, expected numbers")
    if shape != tuple(array.shape) or str(dtype) != array.dtype:
        raise AdapterError(
            f"{name} is said to be {shortened(array.dtype)} of shape "
            f"{shortened(tuple(array.shape))}, and its bytes are {dtype} of shape "
            f"{shortened(shape)}"
        )
    held = len(array.data) - stream.tell()
    if held != size:
        raise AdapterError(f"{name} has {held} bytes of values, expected {size}")
    flat = np.frombuffer(array.data, dtype=dtype, offset=stream.tell()).copy()
    return flat.reshape(shape, order="F" if fortran else "C")
