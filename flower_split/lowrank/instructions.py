"""Instructions: what a message asks a silo to do with its adapters, in its config record."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flower_split.errors import AdapterError
from flower_split.lowrank.names import part_of
from flower_split.lowrank.scaling import Scaling

LORA_RECORD = "lora"
"""Name of the ConfigRecord in which a reply says how its adapter is scaled."""

CONTROL = "control:"
"""Prefix of the names of control variates, which have the shapes of the tensors named after it."""

PARTS = frozenset("AB")

_TRAINS, _PERSONAL, _SCALE = "lora.trains", "lora.keeps", "lora.scale"
_CONTROLLED = "lora.controlled"
_PROXIMAL = "proximal-mu"  # the key of Flower's own FedProx

Value = str | int | float | bool | bytes | list[str]


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """What to train, what is personal to the silo, and how the received tensors are scaled."""

    trains: frozenset[str] = PARTS
    """Factors that are trained, of `A` and `B`; the others are frozen and not sent back."""
    personal: frozenset[str] = frozenset()
    """Names of adapter tensors that never leave the silo, which resumes from its own ones."""
    scale: float | None = None
    """Factor of the product of the received tensors; None for the silo's own."""
    proximal_mu: float = 0.0
    """Strength of FedProx's pull towards what was received (Li et al. 2020, arXiv:1812.06127)."""
    controlled: bool = False
    """Whether SCAFFOLD's control variates come with the tensors and are sent back."""

    def trains_tensor(self, name: str) -> bool:
        """Whether the adapter tensor `name` is trained.

        Raises:
            AdapterError: only one of the two factors is trained, and it is neither.
        """
        return self.trains == PARTS or part_of(name) in self.trains

    @property
    def has_personal(self) -> bool:
        """Whether a round leaves personal tensors, which are never sent and the next one needs.

        They are those that `personal` names, and SCAFFOLD's own control variates.
        """
        return bool(self.personal) or self.controlled

    @property
    def sends_all(self) -> bool:
        """Whether every tensor of the adapter is sent back, and nothing else."""
        return self.trains == PARTS and not self.has_personal

    def to_fields(self) -> dict[str, Value]:
        """The instructions as fields of a message's ConfigRecord."""
        fields: dict[str, Value] = {_TRAINS: ",".join(sorted(self.trains))}
        if self.personal:
            fields[_PERSONAL] = sorted(self.personal)
        if self.scale is not None:
            fields[_SCALE] = self.scale
        if self.proximal_mu:
            fields[_PROXIMAL] = self.proximal_mu
        if self.controlled:
            fields[_CONTROLLED] = True
        return fields

    def with_personal(self, names: Iterable[str], scale: float) -> "Instructions":
        """The same, with further personal tensors, and with `scale` where none is given yet."""
        more = self.personal | frozenset(names)
        return replace(self, personal=more, scale=scale if self.scale is None else self.scale)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Instructions":
        """The instructions in a message's config; those of a plain strategy when it has none.

        Raises:
            AdapterError: a field is malformed.
        """
        trains = fields.get(_TRAINS, "A,B")
        personal = fields.get(_PERSONAL, [])
        scale, mu = fields.get(_SCALE), fields.get(_PROXIMAL, 0.0)
        parts = frozenset(trains.split(",")) if isinstance(trains, str) else frozenset[str]()
        if not parts or not parts <= PARTS:
            raise AdapterError(f"{_TRAINS} must name A, B or both, not {trains!r}")
        if not isinstance(personal, list) or not all(isinstance(n, str) for n in personal):
            raise AdapterError(f"{_PERSONAL} must be a list of tensor names")
        if not (scale is None or (_number(scale) and scale > 0)):
            raise AdapterError(f"{_SCALE} must be a number above 0, not {scale!r}")
        if not (_number(mu) and mu >= 0):
            raise AdapterError(f"{_PROXIMAL} must be a number from 0, not {mu!r}")
        return cls(
            trains=parts,
            personal=frozenset(personal),
            scale=None if scale is None else float(scale),
            proximal_mu=float(mu),
            controlled=bool(fields.get(_CONTROLLED, False)),
        )


def scaling_fields(scaling: Scaling) -> dict[str, Value]:
    """Fields of the ConfigRecord `lora` of a reply."""
    return {"r": scaling.r, "alpha": scaling.alpha, "rslora": scaling.rslora}


def scaling_from_fields(fields: Mapping[str, Any]) -> Scaling:
    """The scaling that a silo tells, in a reply's ConfigRecord `lora` or in a handshake.

    Raises:
        AdapterError: a field is missing or malformed.
    """
    r, alpha, rslora = (fields.get(name) for name in ("r", "alpha", "rslora"))
    if not isinstance(r, int) or isinstance(r, bool):
        raise AdapterError(f"the silo's lora.r must be a whole number, not {r!r:.80}")
    if not _number(alpha) or not isinstance(rslora, bool):
        raise AdapterError(
            "the silo's lora.alpha must be a number and its lora.rslora true or false, not "
            f"{alpha!r:.80} and {rslora!r:.80}"
        )
    try:
        return Scaling(r=r, alpha=float(str(alpha)), rslora=rslora)
    except ValueError as error:
        raise AdapterError(f"the silo's lora settings: {error}") from error


def _number(value: object) -> bool:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return numeric and math.isfinite(float(str(value)))
