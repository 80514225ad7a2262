"""A trunk service in the test's own process, with real sockets, and runs that use it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from hosting import nothing_left
from split_run import run_split

from flower_split.config.run_config import read_run_config
from flower_split.config.sections import SplitConfig, TrunkConfig
from flower_split.control.run_bounds import RunBounds
from flower_split.control.served_model import ServedModel
from flower_split.control.served_runs import ServedRuns
from flower_split.control.served_trunk import ServedTrunk
from flower_split.control.server import TrunkServiceServer
from flower_split.server.hosting.resolving import load_run_trunks


@contextmanager
def serving(
    values: Mapping[str, Any],
    *,
    bounds: RunBounds | None = None,
    devices: str = "cpu",
    amid_a_run: bool = False,
    **options: Any,
) -> Iterator[TrunkServiceServer]:
    """A service for runs with the model and the cuts of the run config `values`.

    Args:
        values: Of a run.
        bounds: Of all runs.
        devices: That hold the trunk, with commas.
        amid_a_run: Whether others' threads may begin meanwhile, and go on.
        options: Of the server.
    """
    tls = options.get("tls")
    strategies = () if tls is None else tls.strategies
    runs = runs_of(values, bounds=bounds, devices=devices, strategies=strategies)
    with (
        nullcontext() if amid_a_run else nothing_left(),
        TrunkServiceServer(runs, **options) as server,
    ):
        server.runs = runs  # type: ignore[attr-defined]
        yield server


def runs_of(
    values: Mapping[str, Any],
    *,
    bounds: RunBounds | None = None,
    devices: str = "cpu",
    **options: Any,
) -> ServedRuns:
    """The runs of a service for the model and the cuts of the run config `values`."""
    config = read_run_config(dict(values))
    names = tuple(one.strip() for one in devices.split(","))
    place: dict[str, Any] = {"devices": names} if len(names) > 1 else {"device": names[0]}
    trunk = TrunkConfig(dtype=config.trunk.dtype, **place)
    bounds = bounds or RunBounds()
    served = ServedTrunk(
        load_run_trunks(SplitConfig(model=config.model, split=config.split, trunk=trunk)),
        bounds.max_activation_bytes,
    )
    model = ServedModel.of_run(config)
    return ServedRuns(served, model, config.model.name, bounds, **options)


def at(server: TrunkServiceServer, values: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The run config of a run at that service."""
    return {**values, "trunk.service": server.control_address, **changes}


def learned(values: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Every adapter tensor that a run with this config yields, by name."""
    result, _ = run_split(dict(values), **options)
    assert not [record.failure for record in result.history if record.failure]
    assert result.adapter is not None
    return {name: tensor.numpy() for name, tensor in result.adapter.items()}
