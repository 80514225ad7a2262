"""The wire: what becomes of the four tensors of a microbatch between silo and trunk.

Its codecs and transforms are named here, and made where they are used: a configuration is read
without torch, so a row of these tables says where a class is. Other packages add further rows by
the entry-point groups `flower_split.codecs` and `flower_split.transforms`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flower_split.config.checks import one_of
from flower_split.errors import ConfigError
from flower_split.plugins import registered

CODEC_GROUP = "flower_split.codecs"
CODEC_CLASSES: Mapping[str, str] = {
    "fp32": "flower_split.compression.floats:Fp32",
    "bf16": "flower_split.compression.floats:Bf16",
    "fp16": "flower_split.compression.floats:Fp16",
    "int8": "flower_split.compression.int8:Int8",
    "nf4": "flower_split.compression.nf4:Nf4",
}
CODECS = tuple(CODEC_CLASSES)

TRANSFORM_GROUP = "flower_split.transforms"
TRANSFORM_CLASSES: Mapping[str, str] = {}

_TO_TRUNK = {"upward": True}
_TO_SILO = {"upward": False}


@dataclass(frozen=True, kw_only=True)
class WireConfig:
    """How each of the four tensors of a microbatch is encoded: names of `CODECS`, or of codecs that
    an installed package adds. A coarse codec saves bytes and protects nothing: the text can be
    reconstructed from rounded tensors too.
    """

    h1: str = field(default="fp32", metadata=_TO_TRUNK)
    """Bottom's output, silo to trunk."""
    h2: str = field(default="fp32", metadata=_TO_SILO)
    """Trunk's output, trunk to silo."""
    g2: str = field(default="fp32", metadata=_TO_TRUNK)
    """Gradient of the loss at h2, silo to trunk."""
    g1: str = field(default="fp32", metadata=_TO_SILO)
    """Gradient of the loss at h1, trunk to silo."""
    transforms: tuple[str, ...] = ()
    """Transforms that an installed package adds, at both ends: applied in this order to what leaves
    a silo or the trunk, and in the reverse order to what arrives there; empty for none."""

    def __post_init__(self) -> None:
        for hop in HOPS:
            _check_known(f"wire.{hop}", getattr(self, hop), CODEC_CLASSES, CODEC_GROUP)
        for name in self.transforms:
            _check_known("wire.transforms", name, TRANSFORM_CLASSES, TRANSFORM_GROUP)

    @classmethod
    def uniform(cls, codec: str) -> "WireConfig":
        """The same codec for all four tensors."""
        codecs: dict[str, Any] = dict.fromkeys(HOPS, codec)
        return cls(**codecs)


HOPS: tuple[str, ...] = tuple(
    setting.name for setting in fields(WireConfig) if "upward" in setting.metadata
)
"""The tensors (B, T, H) that cross a cut, in the order in which a microbatch makes them."""
UPWARD_HOPS: tuple[str, ...] = tuple(
    setting.name for setting in fields(WireConfig) if setting.metadata.get("upward")
)
"""Those of them that go from the silo to the trunk."""


def _check_known(key: str, name: str, own: Mapping[str, str], group: str) -> None:
    """Raise `ConfigError` unless `name` is one of ours or of an installed package's."""
    if name in own:
        return
    known = (*own, *registered(group))
    if not known:
        raise ConfigError(f"{key}: there is no {name!r}; no installed package adds any")
    one_of(key, name, known)
