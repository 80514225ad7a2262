"""The Ray cluster of one trunk: one that exists, or one of its own on this machine."""

import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil

from flower_split.config.address import is_loopback
from flower_split.errors import ConfigError

logger = logging.getLogger(__name__)

ADDRESS = "RAY_ADDRESS"
"""Environment variable that names a cluster which exists: `host:port`, or `auto` for the one of
`ray start` on this machine."""
CONNECT_SECONDS = 5.0
"""Within which a cluster must take a connection."""
_STORE_BYTES = 1 << 30
"""Of shared memory that a cluster of the trunk's own may have, and at most an eighth of what is
free."""


def import_ray() -> Any:
    """Ray, which is imported where it is asked for and nowhere else.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
        import ray.util
    except ImportError as error:
        raise ConfigError(
            "trunk.engine 'ray' needs Ray, and it is not installed: pip install 'ray>=2.55', or "
            "leave trunk.engine at 'local'"
        ) from error
    return ray


@contextmanager
def connected(bundles: int) -> Iterator[Any]:
    """Ray, connected to a cluster within the context.

    A connection that this process has already is used, and stays. Without one, the cluster is the
    one that `RAY_ADDRESS` names, or else one of its own on this machine, which ends with it.

    Args:
        bundles: Actors that are to be placed, with a CPU each.

    Raises:
        ConfigError: the cluster is not there, or this machine has no memory for so many.
    """
    ray = import_ray()
    if is_simulation():
        _check_memory(bundles)
        _await_simulation(ray)
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get(ADDRESS, "").strip()
    if address:
        _check_there(address)
    else:
        _check_memory(bundles)
    with ExitStack() as stack:
        own = {} if address else stack.enter_context(_own_cluster(ray, bundles))
        stack.callback(ray.shutdown)
        options: dict[str, Any] = own or {"address": address}
        try:
            ray.init(configure_logging=False, log_to_driver=False, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"trunk.engine 'ray': {_described(address)} cannot be used: {_first_line(error)}. "
                f"Start one with 'ray start --head' and name it in {ADDRESS}, or leave {ADDRESS} "
                "empty for one on this machine"
            ) from error
        if own:
            _check_loopback(ray)
        yield ray


def _check_memory(actors: int) -> None:
    """Raise `ConfigError` where this machine has no memory for so many processes."""
    needed, free = actors * _PROCESS_BYTES, int(psutil.virtual_memory().available)
    if needed > free:
        raise ConfigError(
            f"trunk.stages x trunk.replicas is {actors} actors, which take about "
            f"{needed / 1e9:.3g} GB of memory before they hold a layer, and this machine has "
            f"{free / 1e9:.3g} GB free: lower trunk.stages or trunk.replicas, or name a cluster of "
            f"several machines in {ADDRESS}"
        )


_PROCESS_BYTES = 400_000_000
"""Of a process with all that a stage imports."""


def is_simulation() -> bool:
    """Whether this is a thread of the process that simulates the silos, on a cluster of its own."""
    module = sys.modules.get(_SIMULATION)
    return module is not None and threading.current_thread() is not threading.main_thread()


def _await_simulation(ray: Any) -> None:
    """It starts its cluster beside the ServerApp, and a process has one connection only."""
    end = time.monotonic() + _SIMULATION_SECONDS
    while not ray.is_initialized() and time.monotonic() < end:
        time.sleep(0.1)


_SIMULATION = "flwr.simulation.run_simulation"
_SIMULATION_SECONDS = 60.0


@contextmanager
def _own_cluster(ray: Any, bundles: int) -> Iterator[dict[str, Any]]:
    """What starts a cluster that no other machine reaches: on loopback, in a folder of this user's
    that is gone afterwards."""
    free = psutil.virtual_memory().available
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    # On Linux it would listen on all of the machine's addresses, whatever it is told.
    constants = ray._private.ray_constants
    before, held = os.environ.get(_WIDE), getattr(constants, _WIDE_CONSTANT, None)
    os.environ[_WIDE] = "0"
    setattr(constants, _WIDE_CONSTANT, False)
    # The path of a socket in it may have a hundred characters.
    folder = tempfile.mkdtemp(
        prefix=f"fs{os.getpid()}-", dir="/tmp" if os.path.isdir("/tmp") else None
    )
    try:
        yield {
            "address": "local",
            "num_cpus": max(bundles, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": max(80 << 20, min(_STORE_BYTES, free // 8)),
            "_temp_dir": folder,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        setattr(constants, _WIDE_CONSTANT, held)
        if before is None:
            os.environ.pop(_WIDE, None)
        else:
            os.environ[_WIDE] = before


_WIDE, _WIDE_CONSTANT = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "ENABLE_RAY_CLUSTER"
"""By which Ray decides, on other systems, whether to listen on loopback alone."""


def _check_loopback(ray: Any) -> None:
    """Raise `ConfigError` where a cluster of the run's own can be reached from elsewhere."""
    host = str(ray.get_runtime_context().gcs_address).rpartition(":")[0].strip("[]")
    if not is_loopback(host):
        raise ConfigError(
            f"trunk.engine 'ray': Ray {ray.__version__} would listen on {host}, where other "
            "machines could run code in the trunk: start a cluster on a network of its own, and "
            f"name it in {ADDRESS}"
        )


def _check_there(address: str) -> None:
    """Before Ray waits for it, which it does for long."""
    if address.startswith("ray://"):
        raise ConfigError(
            f"{ADDRESS} {address!r} is Ray's client, over which stages could not be watched: start "
            "the run on a machine of the cluster, and name the cluster's host:port there"
        )
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return
    except (OSError, ValueError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"trunk.engine 'ray': no cluster answers at {ADDRESS} {address!r}: {why}. Start one "
            f"with 'ray start --head', or leave {ADDRESS} empty for one on this machine"
        ) from error


def _described(address: str) -> str:
    return f"the cluster at {ADDRESS} {address!r}" if address else "a cluster on this machine"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
