"""Evidence, who makes it and who judges it; both are other packages' plug-ins."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from flower_split.errors import ConfigError, WireError
from flower_split.plugins import PluginTable

Found = TypeVar("Found")

LONGEST_FORMAT = 64
"""Characters."""
MOST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a trunk shows.

    Raises:
        WireError: the format's name is no short text of ASCII, or there is too much data.
    """

    format: str
    """Names how `data` is read, for the verifier."""
    data: bytes

    def __post_init__(self) -> None:
        name = self.format
        if not (name.isascii() and name.isprintable() and 0 < len(name) <= LONGEST_FORMAT):
            raise WireError(
                f"evidence needs a format's name of 1 to {LONGEST_FORMAT} printable characters of "
                "ASCII"
            )
        if len(self.data) > MOST_BYTES:
            raise WireError(f"evidence of {len(self.data)} bytes, expected {MOST_BYTES} at most")


class Attester(Protocol):
    """Makes evidence, where the trunk runs; called in a thread, for one silo at a time."""

    def __call__(self, binding: bytes) -> Evidence:
        """Evidence about these 32 bytes; whatever it raises is logged there and refused."""
        ...


class Verifier(Protocol):
    """Judges evidence, at a silo."""

    def __call__(self, evidence: Evidence, binding: bytes) -> None:
        """Return where the evidence is about these 32 bytes and describes what may have the data.

        Raises:
            Exception: it is not, or does not; the session then ends before it began, with this
                reason.
        """
        ...


_ATTESTER, _VERIFIER = "trunk.attester", "the node config's trunk-verifier"

ATTESTERS: PluginTable[Attester] = PluginTable(
    "flower_split.attesters", {}, key=_ATTESTER, noun="attester"
)
VERIFIERS: PluginTable[Verifier] = PluginTable(
    "flower_split.verifiers", {}, key=_VERIFIER, noun="verifier"
)


def attester_of(name: str) -> Attester | None:
    """The attester of that name; None for an empty one.

    Raises:
        ConfigError: no installed package has it, or it cannot be imported or called.
    """
    return _of(ATTESTERS, name, _ATTESTER)


def verifier_of(name: str) -> Verifier | None:
    """The verifier of that name; None for an empty one.

    Raises:
        ConfigError: as `attester_of`.
    """
    return _of(VERIFIERS, name, _VERIFIER)


def _of(table: PluginTable[Found], name: str, key: str) -> Found | None:
    if not name:
        return None
    try:
        found = table[name]
    except KeyError:
        known = ", ".join(table) or "none is installed"
        raise ConfigError(
            f"{key} {name!r} is in no installed package; there are: {known}. Install the package "
            "that has it in this environment"
        ) from None
    if not callable(found):
        raise ConfigError(f"{key} {name!r} cannot be called, as an attester or verifier is")
    return found
