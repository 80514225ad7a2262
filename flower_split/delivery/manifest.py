"""The manifest of a pack: every part of it by SHA-256 and size.

A pack's digest is that of its manifest's bytes, so it names all of the content.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flower_split.errors import WireError

FORMAT = 1

SMALL_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""Names that a pack may have: configurations, and what tokenizers without own code are made of."""

MAX_MANIFEST_BYTES = 1 << 20
MAX_SMALL_BYTES = 256 << 20
"""Bound of one of the small files; the largest tokenizers take about 35 MB."""
MAX_PART_BYTES = 1 << 40

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One part of a pack, as the manifest lists it."""

    digest: str
    """SHA-256, hexadecimal."""
    size: int
    """Bytes of the whole part."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a pack consists of."""

    files: Mapping[str, Item]
    """Small files by name."""
    weights: tuple[Item, ...]
    """Safetensors files; their names mean nothing, so they have none."""

    @property
    def items(self) -> dict[str, Item]:
        """Every part once, by its digest."""
        return {item.digest: item for item in (*self.files.values(), *self.weights)}

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(item.size for item in self.items.values())

    @property
    def digest(self) -> str:
        """The pack's digest, hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON; the same content has the same bytes."""
        content = {
            "format": FORMAT,
            "files": {name: [item.digest, item.size] for name, item in self.files.items()},
            "weights": [[item.digest, item.size] for item in self.weights],
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Manifest":
        """The manifest that a server sent.

        Raises:
            WireError: it is none, names a file that no model needs, or a size out of bounds.
        """
        try:
            fields: Any = json.loads(content)
        except (ValueError, RecursionError):
            raise WireError("the manifest of the model's delivery is no JSON") from None
        if not isinstance(fields, dict) or fields.keys() != {"format", "files", "weights"}:
            raise WireError("the manifest of the model's delivery lacks fields, or has others")
        files, weights = fields["files"], fields["weights"]
        if fields["format"] != FORMAT or not isinstance(files, dict):
            raise WireError(
                f"the manifest of the model's delivery is not of format {FORMAT}; install the "
                "same version of flower-split on both ends"
            )
        if not isinstance(weights, list) or not weights or "config.json" not in files:
            raise WireError("the manifest of the model's delivery has no weights or no config.json")
        if strange := files.keys() - SMALL_FILES:
            raise WireError(
                f"the manifest of the model's delivery has {len(strange)} files that no silo needs"
            )
        return cls(
            files={name: _item(entry, MAX_SMALL_BYTES) for name, entry in files.items()},
            weights=tuple(_item(entry, MAX_PART_BYTES) for entry in weights),
        )


def _item(entry: object, most: int) -> Item:
    if isinstance(entry, list) and len(entry) == 2:
        digest, size = entry
        if is_digest(digest) and type(size) is int and 0 < size <= most:
            return Item(digest=digest, size=size)
    raise WireError(
        "the manifest of the model's delivery has an entry that is not a SHA-256 and a size "
        f"from 1 to {most}"
    )


def is_digest(value: object) -> bool:
    """Whether `value` is a SHA-256 in hexadecimal."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None
