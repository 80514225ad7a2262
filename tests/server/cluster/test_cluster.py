"""The Ray cluster of a trunk: what is not there is said in seconds, and nothing stays behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from federation import free_port
from hosting import eventually, is_free
from ray_trunks import SECONDS, gone, in_one_process, on_ray, ray_processes
from sessions_alike import same, yields
from tiny_checkpoint import save_tiny_model

from flower_split.errors import ConfigError
from flower_split.server.cluster.cluster import ADDRESS, connected, is_simulation

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:{port}", "no cluster answers at RAY_ADDRESS '127.0.0.1:"),
        ("127.0.0.1", "no cluster answers at RAY_ADDRESS"),
        ("127.0.0.1:99999", "no cluster answers at RAY_ADDRESS"),
        ("ray://127.0.0.1:10001", "Ray's client"),
    ],
)
def test_a_cluster_that_is_not_there_is_refused_in_seconds(
    monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setenv(ADDRESS, address.format(port=free_port()))
    began = time.monotonic()
    with pytest.raises(ConfigError, match=said), connected(2):
        pass
    assert time.monotonic() - began < 10.0


def test_more_stages_than_layers_are_refused_before_anything_is_started(folder: Path) -> None:
    before = {process.pid for process in ray_processes()}
    with (
        pytest.raises(ConfigError, match=r"trunk\.stages makes 3 stages of a trunk that has 2"),
        on_ray(folder, 3),
    ):
        pass
    assert not {process.pid for process in ray_processes()} - before


def test_a_simulations_own_thread_is_told_from_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked() -> bool:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(is_simulation).result()

    assert not asked()
    monkeypatch.setitem(sys.modules, "flwr.simulation.run_simulation", ModuleType("simulation"))
    assert asked()
    assert not is_simulation()


def test_more_actors_than_this_machine_has_memory_for_are_refused(folder: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"512 actors, .* lower trunk\.stages"), connected(512):
        pass
    assert time.monotonic() - began < 10.0


@pytest.mark.slow
def test_a_trunk_in_one_process_imports_no_ray() -> None:
    code = """
        import sys
        from flower_split.strategies import TrunkHost
        import flower_split.server.stages.local_chain
        assert "ray" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.slow
def test_nothing_is_left_of_a_run_that_is_killed(folder: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        sys.path[:0] = sys.argv[2:]
        from ray_trunks import on_ray
        with on_ray(Path(sys.argv[1]), 2):
            print("loaded", flush=True)
            time.sleep(600)
    """
    support = [path for path in sys.path if path.endswith("support")]
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder), *support]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        while "loaded" not in run.stdout.readline():
            assert run.poll() is None
        parts = ("raylet/raylet", "gcs_server", "ray::StageActor")
        started = ray_processes(parts, of=run.pid)
        assert started
        run.send_signal(signal.SIGKILL)
    # Two of Ray's agents, which have nothing of the run, notice within a minute or so.
    for left in Path("/tmp").glob(f"fs{run.pid}-*"):  # a process that is killed removes nothing
        shutil.rmtree(left, ignore_errors=True)
    assert gone(started)


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of three nodes, as `ray start` makes it on machines: the head has no CPU to give,
    the others one each."""
    port = free_port()
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "1000",  # or it takes half a minute to miss one
        "RAY_health_check_failure_threshold": "8",
    }
    common = ["--object-store-memory", str(100 << 20), "--disable-usage-stats", "--block"]
    folder = tempfile.mkdtemp(dir="/tmp")  # a socket's path may have a hundred characters
    head = ["--port", str(port), "--include-dashboard", "false", "--temp-dir", folder]
    other = ["--address", f"127.0.0.1:{port}", "--num-cpus", "1", *common]
    nodes = [["--head", "--num-cpus", "0", *head, *common], other, other]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for arguments in nodes:
            started.append(
                subprocess.Popen(
                    [str(BIN / "ray"), "start", *arguments],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
            # Two that begin at once may choose the same ports.
            assert eventually(lambda: _listens(started[-1].pid), 60.0)
        assert not is_free(port)
        monkeypatch.setenv(ADDRESS, f"127.0.0.1:{port}")
        yield
    finally:
        for process in reversed(started):
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(30.0)
            for child in children:
                if child.is_running():
                    child.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _listens(pid: int) -> bool:
    """Whether a node that a process starts has its ports."""
    raylets = [
        one for one in psutil.Process(pid).children(recursive=True) if one.name() == "raylet"
    ]
    return any(c.status == psutil.CONN_LISTEN for one in raylets for c in one.net_connections())


@pytest.mark.slow
def test_a_stage_is_made_anew_where_there_is_room_as_its_machine_ends(
    folder: Path, machines: None
) -> None:
    with connected(2) as ray:
        assert eventually(lambda: ray.cluster_resources().get("CPU") == 2, 60.0)
    with on_ray(folder, 2) as chain:
        facts = [stage.load() for stage in chain.replicas[0]]
        parents = {psutil.Process(one.pid).parent().pid for one in facts}
        assert len(parents) == 2, "each stage is of another node"
        whole = in_one_process(folder)
        expected = yields(whole, "federated", "train")
        assert all(map(same, yields(chain, "federated", "train"), expected))
        assert eventually(lambda: chain.computed.tokens == whole.computed.tokens, 30.0)
    began = time.monotonic()
    with pytest.raises(ConfigError, match="2 CPU of which"), on_ray(folder, 2, 2):
        pass
    assert time.monotonic() - began < 20.0
    with (
        pytest.raises(ConfigError, match=r"trunk\.device is 'cuda'.*the cluster has 0"),
        on_ray(folder, 1, **{"trunk.device": "cuda"}),
    ):
        pass
    with on_ray(folder, 1) as chain:
        (stage,) = chain.replicas[0]
        was = psutil.Process(stage.load().pid)
        machine = was.parent()
        machine.kill()  # its raylet: what the machine had is lost
        assert gone([was])
        stage.come_back(SECONDS)
        assert psutil.Process(stage.load().pid).parent().pid != machine.pid
        assert all(map(same, yields(chain, "federated", "train"), expected))
