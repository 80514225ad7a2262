"""Placement: which of a trunk's layers each of several devices holds."""

from collections import Counter
from collections.abc import Sequence

import torch

from flower_split.devices import resolve_device
from flower_split.devices.memory import unused_memory
from flower_split.errors import ConfigError
from flower_split.segments import Cuts


def stage_devices(names: Sequence[str], *, key: str = "trunk.devices") -> list[torch.device]:
    """The devices of `names` on this machine.

    Raises:
        ConfigError: one of them is not there.
    """
    return [resolve_device(name, key=key, instead="name others") for name in names]


def check_stages(cuts: Cuts, count: int, *, key: str = "trunk.devices") -> None:
    """Raise `ConfigError` where the trunk has not a layer for each of `count` stages."""
    layers = len(cuts.trunk_range)
    if count > layers:
        raise ConfigError(
            f"{key} makes {count} stages of a trunk that has {layers} layers, after "
            f"{cuts.bottom_layers} bottom and before {cuts.top_layers} top layers of "
            f"{cuts.num_layers}: a stage holds one layer at least, so name {layers} at most"
        )


def by_memory(cuts: Cuts, devices: Sequence[torch.device]) -> list[Cuts]:
    """Contiguous layers for each device, in proportion to the memory that nobody uses there.

    Results do not depend on it. Stages on one device share its memory.
    """
    beside = Counter(devices)
    room = [unused_memory(device) / beside[device] for device in devices]
    return apportioned(cuts, room)


def apportioned(cuts: Cuts, room: Sequence[float]) -> list[Cuts]:
    """The trunk's layers in contiguous parts, in proportion to `room`, and none of them empty.

    By the largest remainder: a layer more goes where the rounded share lacks most.
    """
    layers, total = len(cuts.trunk_range), sum(room)
    shares = [layers * one / total if total > 0 else layers / len(room) for one in room]
    counts = [max(1, int(share)) for share in shares]
    while sum(counts) < layers:
        lacking = [share - count for share, count in zip(shares, counts, strict=True)]
        counts[lacking.index(max(lacking))] += 1
    while sum(counts) > layers:
        beyond = [
            count - share if count > 1 else float("-inf")
            for share, count in zip(shares, counts, strict=True)
        ]
        counts[beyond.index(max(beyond))] -= 1
    parts, first = list[Cuts](), cuts.bottom_layers
    for count in counts:
        top = cuts.num_layers - first - count
        parts.append(Cuts(bottom_layers=first, top_layers=top, num_layers=cuts.num_layers))
        first += count
    return parts
