"""What every test shares: one thread, no network, tiny models."""

import atexit
import gc
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Read when torch is imported, and the only setting that holds for threads started later too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# Of the whole run, the processes that it starts included.
if "FLOWER_SPLIT_CACHE" not in os.environ:
    os.environ["FLOWER_SPLIT_CACHE"] = tempfile.mkdtemp(prefix="flower-split-tests-")
    atexit.register(shutil.rmtree, os.environ["FLOWER_SPLIT_CACHE"], ignore_errors=True)

import pytest
import torch
from hypothesis import settings
from started_processes import python_path
from suites import keeps_processes_busy, longest_first, slow_group, takes_long

from flower_split.devices import choice

# A slow or busy machine is no fault of the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


MOST_PROCESSES = 4
"""Each holds torch; and the longest file is waited for however many there are."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the default suite in a process more than there are cores, and named tests in this one.

    One process more, because tests wait for timers and for processes that they started. In the
    quick suite nothing waits, and in the slow one processes keep the cores busy, and tests that
    share what is costly stay together. Elsewhere a process takes neighbours too, and what is left
    of another's when its own are done.
    `-n` decides otherwise, and without pytest-xdist there is one process.
    """
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    undecided = getattr(config.option, "numprocesses", 0) is None
    if undecided and not named and not hasattr(config, "workerinput") and not config.option.usepdb:
        slow = keeps_processes_busy(config.option.markexpr)
        busy = slow or "not medium" in config.option.markexpr
        more = 0 if busy else 1
        config.option.numprocesses = min(MOST_PROCESSES, more + (os.cpu_count() or 1))
        config.option.dist = "loadgroup" if slow else "worksteal"
        config.option.loadscopereorder = False  # by number of tests, which says nothing of time


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what is imported out of the garbage collector's sight: a tenth of all tests' time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what the faster suites leave out, and begin with the longest of the slow groups."""
    sets: Counter[object] = Counter()
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        sets[item.function] += 1
        sampled = item.get_closest_marker("sampled")
        if sets[item.function] > 1 or takes_long(item):
            item.add_marker("medium")
        if sampled is not None and sets[item.function] > sampled.kwargs["keep"]:
            item.add_marker("exhaustive")
    if keeps_processes_busy(config.option.markexpr):
        config.option.loadgroup = True  # xdist passes it on only where it is on the command line
        for item in items:
            item.add_marker(pytest.mark.xdist_group(slow_group(item)))
        items.sort(key=lambda item: longest_first(slow_group(item)))


@pytest.fixture(scope="session", autouse=True)
def _lighter_processes() -> Iterator[None]:
    """Those that tests start; in this one, tests of quantization need bitsandbytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path())
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Equality to the bit holds between runs with the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equality to the bit is the CPU's; `tests/devices` asks for accelerators by name."""
    monkeypatch.setattr(choice, "automatic", lambda: "cpu")


@pytest.fixture(autouse=True)
def state_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Every test's silos keep their state in a folder of the test's own, not in the user's."""
    home = tmp_path_factory.getbasetemp() / "state" / uuid.uuid4().hex
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    yield home
