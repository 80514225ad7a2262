"""The memory of a machine that is free for computing."""

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
# Of a processor's memory, which others use too, and of an accelerator's, which they seldom do.
_SHARE, _ACCELERATOR_SHARE = 0.5, 0.8


def free_memory(device: torch.device, *, cgroup: Path = _CGROUP) -> int:
    """Bytes that a pass may need on `device` by default: a share of what is free there now.

    On a processor that is the least of the machine's available memory and what is left of the
    control group's.
    """
    share = _ACCELERATOR_SHARE if device.type == "cuda" else _SHARE
    return int(share * unused_memory(device, cgroup=cgroup))


def unused_memory(device: torch.device, *, cgroup: Path = _CGROUP) -> int:
    """Bytes of `device` that nobody uses now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory(cgroup)


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes of a processor's memory that are free now, to the machine and to the control group."""
    available = int(psutil.virtual_memory().available)
    left = _left_of_group(cgroup)
    return available if left is None else min(available, left)


def _left_of_group(folder: Path) -> int | None:
    """Bytes that the control group can yet have; None where it has no bound."""
    for limit, used, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (folder / limit).read_text(encoding="ascii").strip()
            now = int((folder / used).read_text(encoding="ascii"))
            lines = (folder / used).with_name("memory.stat").read_text(encoding="ascii")
        except (OSError, ValueError):
            continue
        if not most.isdigit():  # "max"
            continue
        files = next((int(v) for n, v in map(str.split, lines.splitlines()) if n == reclaimable), 0)
        return max(0, int(most) - now + files)
    return None
