"""Devices: which one computes, in what precision, and how tensors get there and back."""

from flower_split.devices.allocator import (
    give_back_freed_memory,
    giving_back_freed_memory,
    keep_freed_memory,
)
from flower_split.devices.autocast import (
    CastWatch,
    as_inner,
    autocast_dtype,
    autocasting,
    current_autocast,
)
from flower_split.devices.choice import resolve_device
from flower_split.devices.staging import beside_compute, mark_ready, to_device, to_host

__all__ = [
    "CastWatch",
    "as_inner",
    "autocast_dtype",
    "autocasting",
    "beside_compute",
    "current_autocast",
    "give_back_freed_memory",
    "giving_back_freed_memory",
    "keep_freed_memory",
    "mark_ready",
    "resolve_device",
    "to_device",
    "to_host",
]
