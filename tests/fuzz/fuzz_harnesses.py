"""All harnesses by name: functions of bytes that raise where the code under them does wrong.

An error of the kind that is documented is what damaged input is answered with. Anything else that
is raised, an assertion among it, is a finding.
"""

import importlib
from collections.abc import Callable

PARTS = {
    "fuzz_wire": ("requests", "replies", "handshake", "codecs", "delivery"),
    "fuzz_records": ("arrays", "fields", "metrics"),
    "fuzz_files": ("session-state", "checkpoint"),
    "fuzz_reports": ("events", "result", "ledger"),
    "fuzz_engine": ("engine",),
    "fuzz_service": ("silo-service",),
    "fuzz_control": ("control",),
    "fuzz_session": ("session",),
}
"""The harnesses of every module beside this one; each is imported when it is used."""
NAMES = tuple(name for names in PARTS.values() for name in names)


def harness(name: str) -> Callable[[bytes], None]:
    """The harness of that name."""
    return _part(name).HARNESSES[name]


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with, which reach into the code."""
    return _part(name).SEEDS[name]()


def _part(name: str):
    return importlib.import_module(next(part for part, names in PARTS.items() if name in names))
