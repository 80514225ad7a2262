"""The machine on which figures were measured, and the versions of what measured them."""

import os
from pathlib import Path
from typing import Any

import psutil

from flower_split.reporting.result import installed_versions


def describe_machine() -> dict[str, Any]:
    """Processor, memory, accelerator and versions."""
    import torch  # late: who only reads a result should not wait for it

    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return {**found, "versions": installed_versions()}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
