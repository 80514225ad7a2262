"""The greeting: what a ClientApp's process and the service must have in common for equal results.

Where one differs the ClientApp does its message itself.
"""

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

import flower_split
from flower_split.proto.silo_pb2 import Greeting

PROTOCOL = 1
PACKAGES = ("flwr", "torch", "transformers", "peft", "numpy")
"""Besides flower_split, whose version the source has."""
ENVIRONMENT = (
    *("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
)
"""Variables that say where states and models are found, and how sums are cut into parts."""


def greeting() -> Greeting:
    """This process's own; the service makes its own when it has just been started."""
    versions = {"flower-split": flower_split.__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    versions["flower-split's files"] = _files()
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return Greeting(protocol=PROTOCOL, versions=versions, environment=environment)


def difference(service: Greeting, own: Greeting) -> str:
    """What is another at the service than in this process; empty for nothing."""
    if service.protocol != own.protocol:
        return (
            f"it speaks version {service.protocol} of the silo service's protocol, and this "
            f"process {own.protocol}"
        )
    for name in sorted({*service.versions, *own.versions}):
        theirs, ours = service.versions.get(name, "none"), own.versions.get(name, "none")
        if theirs != ours:
            return f"it has {name} {theirs}, and this process {ours}"
    for name in sorted({*service.environment, *own.environment}):
        held, wanted = service.environment.get(name), own.environment.get(name)
        if held != wanted:
            return (
                f"its environment has {_set(name, held)}, and that of this process "
                f"{_set(name, wanted)}"
            )
    return ""


def _files() -> str:
    """Names, sizes and times of the package's files: another one where it was installed anew."""
    root = Path(flower_split.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        status = path.stat()
        found.update(f"{path.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()[:16]


def _set(name: str, value: str | None) -> str:
    return f"no {name}" if value is None else f"{name}={value}"
