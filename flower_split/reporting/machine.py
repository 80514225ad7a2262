"""The machine on which figures were measured, what measured them, and in how much memory."""

import os
from pathlib import Path
from typing import Any

import psutil

from flower_split.reporting.result import installed_versions


def describe_machine() -> dict[str, Any]:
    """This machine's processor, cores, memory in GiB and GPU, and the installed versions."""
    import torch  # late: who only reads a result should not wait for it

    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return {**found, "versions": installed_versions()}


def resident_bytes(*, peak: bool = False) -> int:
    """This process's resident set now, or its peak so far; 0 where there is no `/proc`."""
    path, field = Path("/proc/self/status"), "VmHWM:" if peak else "VmRSS:"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
