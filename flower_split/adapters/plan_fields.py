"""The adapter plan as plain data, for files that outlive the run."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flower_split.adapters.plan import AdapterPlan
from flower_split.errors import AdapterError


def plan_to_fields(plan: AdapterPlan) -> dict[str, Any]:
    """JSON from which `plan_from_fields` makes the same plan."""
    return asdict(plan)


def plan_from_fields(fields: Mapping[str, Any]) -> AdapterPlan:
    """The plan that `plan_to_fields` was given.

    Raises:
        AdapterError: `fields` are not those of a plan.
    """
    try:
        return AdapterPlan(
            r=int(fields["r"]),
            alpha=float(fields["alpha"]),
            dropout=float(fields["dropout"]),
            rslora=bool(fields["rslora"]),
            fan_in_fan_out=bool(fields["fan_in_fan_out"]),
            targets=tuple(fields["targets"]),
            modules=tuple(fields["modules"]),
            shapes=tuple((name, tuple(shape)) for name, shape in fields["shapes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"these are not the fields of an adapter plan: {error}") from error
