"""A silo whose optimizer holds the trunk's adapter, and strategies that correct gradients."""

from types import SimpleNamespace
from typing import Any

import pytest

from flower_split.client.opening import open_session
from flower_split.errors import AdapterError
from flower_split.lowrank import Instructions


@pytest.mark.parametrize("asked", [{"proximal_mu": 0.1}, {"controlled": True}])
def test_corrections_at_the_trunk_are_not_left_out(asked: dict[str, Any]) -> None:
    opening: Any = SimpleNamespace(
        invitation=SimpleNamespace(purpose="train"), instructions=Instructions(**asked)
    )
    nothing: Any = None
    with pytest.raises(AdapterError, match="FedProx and SCAFFOLD correct the trunk's gradients"):
        open_session(
            opening,
            nothing,
            nothing,
            nothing,
            device=nothing,
            silo="",
            seed=0,
            tls=None,
            connect=nothing,
            cost=nothing,
            trunk_parameters=True,
        ).__enter__()
