"""The manifest of a checkpoint: every file with its size and digest, and a digest of itself.

Its text is canonical JSON: a reader renders what it parsed and compares, so that no byte of it can
differ unnoticed either.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flower_split.errors import DamagedStateError, StateError

FORMAT = 1
"""A change that an older reader would misread raises it."""

OWN_DIGEST = "digest"


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def render(fields: Mapping[str, Any]) -> bytes:
    """The manifest's text: `fields`, the format, and the digest of both."""
    whole = {**fields, "format": FORMAT}
    return _text({**whole, OWN_DIGEST: digest(_text(whole))})


def parse(data: bytes, where: str) -> dict[str, Any]:
    """The fields of a manifest.

    Raises:
        DamagedStateError: it is not as `render` wrote it.
        StateError: it was written whole, in a format that this version does not know.
    """
    try:
        fields = json.loads(data)
        own = fields.pop(OWN_DIGEST)
        whole = _text(fields)
        intact = own == digest(whole) and data == _text({**fields, OWN_DIGEST: own})
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise DamagedStateError(f"{where} is damaged: it is not what was written")
    if fields.pop("format", None) != FORMAT:
        raise StateError(
            f"{where} was written by another version of flower_split; this one reads format "
            f"{FORMAT}"
        )
    return dict(fields)


def _text(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()
