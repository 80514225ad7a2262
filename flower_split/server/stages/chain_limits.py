"""What one session of a chain may hold."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flower_split.adapters import AdapterPlan
from flower_split.errors import ConfigError
from flower_split.server.stages.stage import Stage
from flower_split.transport.messages import SessionLimits


def chain_limits(
    limits: SessionLimits,
    plan: AdapterPlan | None,
    stages: Sequence[Stage[Any]],
    *,
    shares_adapter: bool,
) -> SessionLimits:
    """`limits`, and how much of the adapter a silo may read and write.

    Raises:
        ConfigError: the trunk does not share such an adapter.
    """
    if not shares_adapter or plan is None:
        return limits
    if not plan.is_plain:
        raise ConfigError(
            f"a trunk shares an adapter of plain LoRA only, and this is {plan.described}: "
            "leave shares_adapter (trunk.shares-adapter) off"
        )
    elements = sum(math.prod(shape) for stage in stages for _, shape in stage.held)
    return replace(limits, max_adapter_elements=elements)
