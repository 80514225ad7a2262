"""A trunk service in the test's own process, with real sockets, and runs that use it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from hosting import nothing_left
from split_run import run_split

from flower_split.config.run_config import read_run_config
from flower_split.control.served_model import ServedModel
from flower_split.control.served_runs import RunBounds, ServedRuns
from flower_split.control.server import TrunkServiceServer
from flower_split.server.hosting.resolving import load_run_trunk


@contextmanager
def serving(
    values: Mapping[str, Any],
    *,
    bounds: RunBounds | None = None,
    amid_a_run: bool = False,
    **options: Any,
) -> Iterator[TrunkServiceServer]:
    """A service for runs with the model and the cuts of the run config `values`.

    Args:
        values: Of a run.
        bounds: Of all runs.
        amid_a_run: Whether others' threads may begin meanwhile, and go on.
        options: Of the server.
    """
    config = read_run_config(dict(values))
    model = ServedModel.of_run(config)
    trunk = load_run_trunk(replace(config, trunk=replace(config.trunk, device="cpu")))
    with nullcontext() if amid_a_run else nothing_left():
        tls = options.get("tls")
        runs = ServedRuns(
            trunk,
            model,
            config.model.name,
            bounds or RunBounds(),
            strategies=() if tls is None else tls.strategies,
        )
        with TrunkServiceServer(runs, **options) as server:
            server.runs = runs  # type: ignore[attr-defined]
            yield server


def at(server: TrunkServiceServer, values: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The run config of a run at that service."""
    return {**values, "trunk.service": server.control_address, **changes}


def learned(values: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Every adapter tensor that a run with this config yields, by name."""
    result, _ = run_split(dict(values), **options)
    assert not [record.failure for record in result.history if record.failure]
    assert result.adapter is not None
    return {name: tensor.numpy() for name, tensor in result.adapter.items()}
