"""Conflicts: a trunk of several devices, stages or replicas, and what it does not do exactly."""

from typing import Any

import pytest

from flower_split.config.run_config import read_run_config
from flower_split.errors import ConfigError

RAY = {"trunk.engine": "ray", "trunk.stages": 2}
TWO = {"trunk.devices": "cpu, cpu"}
ADALORA = {"peft.type": "ADALORA", "peft.total-step": 9}
NOISE = {"dp.noise": 1.0, "dp.clip": 1.0}


def read(**values: Any) -> Any:
    return read_run_config({"model.name": "m", **values})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trunk.devices": "cpu"}, r"names 'cpu' alone.*trunk\.device"),
        ({"trunk.devices": "cuda:0, gpu"}, r"trunk\.devices must be names with commas"),
        ({"trunk.devices": "auto, auto"}, "must name every device"),
        ({"trunk.devices": "cpu, cuda:0"}, "of one kind, not cpu and cuda"),
        ({"trunk.devices": "cuda, cuda:0"}, "names cuda:0 twice"),
        ({"trunk.devices": "cuda:1, cuda:01"}, "names cuda:1 twice"),
        ({"trunk.devices": "mps, mps"}, "names mps twice"),
        ({**TWO, "trunk.device": "cpu"}, "would not be used with trunk.devices"),
        ({**TWO, "trunk.service": "localhost:1"}, "trunk.devices would not be used"),
        ({**TWO, **ADALORA}, "has a term of the loss, and ranks"),
        ({**TWO, **NOISE}, "row by row"),
        ({"trunk.engine": "spark"}, "one of local, ray"),
        ({"trunk.stages": 2}, "trunk.stages would not be used with trunk.engine 'local'"),
        ({"trunk.replicas": 2}, "trunk.replicas would not be used"),
        ({"trunk.engine": "ray", "trunk.stages": 0}, "trunk.stages must be a number at least 1"),
        ({"trunk.engine": "ray", "trunk.replicas": 10**9}, "trunk.replicas must be a number"),
        ({**RAY, **TWO}, "trunk.devices would not be used with trunk.engine 'ray'"),
        ({**RAY, "trunk.device": "cuda:1"}, "is of one machine"),
        ({**RAY, "trunk.device": "mps"}, "is of one machine"),
        ({**RAY, "trunk.adapters": "shared"}, "'federated' or 'frozen'"),
        ({**RAY, **ADALORA}, "may begin with what the trunk's weights are"),
        ({**RAY, **NOISE}, "row by row"),
        ({**RAY, "split.max-bottom-layers": 2}, "stages hold the layers of one cut"),
        ({**TWO, "split.max-top-layers": 3}, "stages hold the layers of one cut"),
        ({**RAY, "trunk.attester": "tdx"}, "makes evidence of this machine"),
        ({**RAY, "trunk.service": "localhost:1"}, "trunk.engine, trunk.stages would not be used"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        read(**values)


@pytest.mark.parametrize(
    "values",
    [
        TWO,
        {"trunk.devices": "cuda, cuda:1,cuda:2"},
        {**TWO, "trunk.adapters": "shared"},
        {**TWO, **ADALORA, "trunk.adapters": "frozen"},
        RAY,
        {**RAY, "trunk.replicas": 3, "trunk.device": "cuda"},
        {**RAY, "trunk.adapters": "frozen"},
    ],
)
def test_what_can_be_is_read(values: dict[str, Any]) -> None:
    config = read(**values)
    assert config.trunk.devices or config.trunk.engine == "ray"
