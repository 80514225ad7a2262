"""Placement: contiguous layers in proportion to memory, and none without a layer."""

import pytest
import torch

from flower_split.errors import ConfigError
from flower_split.segments import Cuts
from flower_split.server.stages.placement import (
    apportioned,
    by_memory,
    check_stages,
    stage_devices,
)

CUTS = Cuts(bottom_layers=2, top_layers=2, num_layers=12)


def counts(room: list[float]) -> list[int]:
    parts = apportioned(CUTS, room)
    held = [index for part in parts for index in part.trunk_range]
    assert held == list(CUTS.trunk_range)
    return [len(part.trunk_range) for part in parts]


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        ([1.0, 1.0], [4, 4]),
        ([3.0, 1.0], [6, 2]),
        ([80.0, 40.0, 40.0], [4, 2, 2]),
        ([1.0, 1.0, 1.0], [3, 3, 2]),
        ([1000.0, 1.0], [7, 1]),
        ([1.0, 0.0, 1000.0], [1, 1, 6]),
        ([0.0, 0.0], [4, 4]),
        ([1.0] * 8, [1] * 8),
    ],
)
def test_layers_are_laid_out_by_memory(room: list[float], expected: list[int]) -> None:
    assert counts(room) == expected


def test_stages_on_one_device_share_its_memory() -> None:
    parts = by_memory(CUTS, [torch.device("cpu")] * 4)
    assert [len(part.trunk_range) for part in parts] == [2, 2, 2, 2]


def test_more_stages_than_layers_are_refused() -> None:
    check_stages(CUTS, 8)
    with pytest.raises(ConfigError, match=r"9 stages of a trunk that has 8 layers.*8 at most"):
        check_stages(CUTS, 9)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trunk\.devices is 'cuda:17'.*name others"):
        stage_devices(["cuda:17", "cuda:18"])
