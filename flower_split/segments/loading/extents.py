"""The extents of a safetensors file: where each tensor's bytes lie in it."""

import json
from dataclasses import dataclass
from pathlib import Path

from flower_split.errors import WeightsError
from flower_split.text_tables import read_json

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own bound


@dataclass(frozen=True, kw_only=True)
class Extent:
    """One tensor of a safetensors file, in the file's own dtype and bytes."""

    name: str
    dtype: str
    """As the format names it, such as `BF16`."""
    shape: tuple[int, ...]
    path: Path
    offset: int
    """First byte, from the start of the file."""
    size: int
    """Bytes of the tensor in the file."""


def tensor_extents(path: Path) -> dict[str, Extent]:
    """Every tensor of a safetensors file that the library could open, by name.

    The library gives tensors only, not their places; the format's header does
    (github.com/huggingface/safetensors, "Format").

    Raises:
        WeightsError: the header cannot be read.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = read_json(file.read(min(length, _MAX_HEADER_BYTES)))
        start = _LENGTH_BYTES + length
        return {
            name: Extent(
                name=name,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                path=path,
                offset=start + entry["data_offsets"][0],
                size=entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
        raise WeightsError(
            f"{path} is not a readable safetensors file: {exc}. Copy or download it again"
        ) from exc


def file_header(extents: list[Extent]) -> bytes:
    """What precedes the bytes of these tensors, in this order, in a safetensors file of them."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for extent in extents:
        header[extent.name] = {
            "dtype": extent.dtype,
            "shape": extent.shape,
            "data_offsets": [offset, offset + extent.size],
        }
        offset += extent.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # so that tensors are aligned
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
