"""The wire: what becomes of the four tensors of a microbatch between silo and trunk.

Its codecs and transforms are named here, and made where they are used: a configuration is read
without torch, so a row of these tables says where a class is. Other packages add further rows by
the entry-point groups `flower_split.codecs` and `flower_split.transforms`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flower_split.config.checks import in_range, one_of
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
NOISE = "noise"
TRANSFORM_CLASSES: Mapping[str, str] = {NOISE: "flower_split.transforms.noise:CutNoise"}

MOST_CLIP, MOST_NOISE = 1e9, 1e6

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
    a silo or the trunk, and in the reverse order to what arrives there; empty for none. `noise`,
    which the keys below switch on, comes after all others, and need not be named."""
    h1_clip: float = 0.0
    """Largest L2 norm of a token's row of h1 as it leaves the silo; 0 for any. See
    [privacy.md](privacy.md)."""
    h1_noise: float = 0.0
    """Standard deviation of Gaussian noise on every element of h1, as a multiple of `h1_clip`; 0
    for none."""
    h2_clip: float = 0.0
    """Largest L2 norm of a token's row of h2 as it leaves the trunk; 0 for any."""
    h2_noise: float = 0.0
    """Noise on h2, as a multiple of `h2_clip`; 0 for none."""
    g2_clip: float = 0.0
    """Largest L2 norm of a token's row of g2 as it leaves the silo; 0 for any."""
    g2_noise: float = 0.0
    """Noise on g2, as a multiple of `g2_clip`; 0 for none."""
    g1_clip: float = 0.0
    """Largest L2 norm of a token's row of g1 as it leaves the trunk; 0 for any."""
    g1_noise: float = 0.0
    """Noise on g1, as a multiple of `g1_clip`; 0 for none."""

    def __post_init__(self) -> None:
        for hop in HOPS:
            _check_known(f"wire.{hop}", getattr(self, hop), CODEC_CLASSES, CODEC_GROUP)
        for name in self.transforms:
            _check_known("wire.transforms", name, TRANSFORM_CLASSES, TRANSFORM_GROUP)
        self._check_noise()

    def _check_noise(self) -> None:
        for hop in HOPS:
            in_range(f"wire.{hop}-clip", self.clip_of(hop), 0.0, MOST_CLIP)
            in_range(f"wire.{hop}-noise", self.noise_of(hop), 0.0, MOST_NOISE)
            if self.noise_of(hop) and not self.clip_of(hop):
                raise ConfigError(
                    f"wire.{hop}-noise is {self.noise_of(hop):g} times wire.{hop}-clip, which is "
                    f"0: noise hides nothing of rows that may be of any length. Set "
                    f"wire.{hop}-clip to the largest norm that a token's row shall have"
                )
        clips = any(self.clip_of(hop) for hop in HOPS)
        if clips and NOISE not in self.transforms:
            object.__setattr__(self, "transforms", (*self.transforms, NOISE))
        if NOISE in self.transforms and not clips:
            raise ConfigError(
                f"wire.transforms names {NOISE!r}, and every wire.*-clip is 0: set wire.h1-clip, "
                f"wire.g2-clip or their like, or leave {NOISE!r} out"
            )
        if NOISE in self.transforms[:-1]:
            raise ConfigError(
                f"wire.transforms has others after {NOISE!r}: put it last, so that what leaves is "
                "what it made"
            )

    def clip_of(self, hop: str) -> float:
        """Largest L2 norm of a token's row of `hop`; 0 for any."""
        return float(getattr(self, f"{hop}_clip"))

    def noise_of(self, hop: str) -> float:
        """Standard deviation of the noise on `hop` as a multiple of `clip_of(hop)`; 0 for none."""
        return float(getattr(self, f"{hop}_noise"))

    def deviation_of(self, hop: str) -> float:
        """Standard deviation of the noise on every element of `hop`; 0 for none."""
        return self.clip_of(hop) * self.noise_of(hop)

    @property
    def hides(self) -> bool:
        """Whether anything that leaves a silo gets noise."""
        return any(self.noise_of(hop) for hop in UPWARD_HOPS)

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
