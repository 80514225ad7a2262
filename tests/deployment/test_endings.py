"""However a run ends: no process, port or file of it stays, and it is said what happened.

Real processes. Nearly all endings befall the same federation, one after the other: the runs that
follow show that an ending holds no SuperNode.
"""

import signal
from contextlib import suppress

import psutil
import pytest
from federation import COMPLETED, SECONDS, Federation, Node, wait_for

from flower_split.apps.run_record import STOPPED
from flower_split.reporting import read_result

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

LONG = {"train__local_steps": 100_000}
"""Hours of training: only its ending ends such a run."""
ONE_OF_TWO = {"strategy__fraction_train": 0.5, "strategy__min_nodes": 1}
"""One silo trains, where one shows it: every message to a silo starts a process."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A federation for the endings that leave SuperLink and SuperNodes running."""
    nodes = [Node(config={"partition-id": i, "num-partitions": 2}) for i in range(2)]
    with Federation(tmp_path_factory.mktemp("federation") / "home", nodes) as running:
        yield running


def train(federation, tiny, output, silos=None, **changes):
    """Start a run and wait until `silos`, or all, train: (run id, own ports, ClientApps)."""
    own = set(federation.listening())
    given = {**LONG, **changes}
    run_id = federation.submit(tiny.app, output_dir=str(output), **given)
    silos = silos or round(len(federation.nodes) * given.get("strategy__fraction_train", 1.0))
    started = False

    def connected():
        nonlocal started
        running = bool(federation.members("flwr-serverapp"))
        assert running or not started, f"{federation.state(run_id)}\n{federation.logs()}"
        started = running
        found = federation.silos_at_trunk(own)
        return found if len(found) >= silos else None

    return run_id, own, wait_for(connected, "silos train", logs=federation.logs)


@pytest.fixture
def training(tiny, tmp_path):
    """As `train`, with the test's own output folder."""
    output = tmp_path / "output"
    return lambda federation, silos=None, **changes: train(
        federation, tiny, output, silos, **changes
    )


@pytest.fixture(scope="module")
def killed_server_app(shared, tiny, tmp_path_factory):
    """The id of the run whose ServerApp was killed while both silos trained, and own ports."""
    run_id, own, _ = train(shared, tiny, tmp_path_factory.mktemp("killed"))
    (server_app,) = shared.members("flwr-serverapp")
    server_app.kill()
    return run_id, own


def result(tmp_path):
    return read_result(tmp_path / "output" / "result.json")


def test_a_killed_server_app(shared, killed_server_app):
    """The trunk is gone: clients fail and free their SuperNodes, long before Flower notices.

    What Flower says of it a minute later is asked for after the other endings.
    """
    _, own = killed_server_app
    wait_for(lambda: not shared.members("flwr-clientapp"), "clients fail", 50.0, shared.logs)
    shared.assert_idle(own)
    assert "trunk at 127.0.0.1" in shared.log("silo0")
    assert "trunk at 127.0.0.1" in shared.log("silo1")


@pytest.mark.exhaustive
def test_row_32_flwr_stop(shared, training, tmp_path):
    run_id, own, _ = training(shared, **ONE_OF_TWO)
    shared.flwr("stop", run_id)
    assert shared.wait(run_id).status == "finished:stopped"
    # Clients fail by themselves: Flower leaves them running, and their SuperNodes with them.
    shared.assert_idle(own, seconds=60.0)
    assert result(tmp_path).failure


@pytest.mark.exhaustive
def test_row_32_silos_that_are_all_killed(shared, training, tmp_path):
    run_id, own, clients = training(shared)
    for client in clients:
        client.kill()
    ended = shared.wait(run_id)
    assert ended.status == "finished:failed"
    assert "round 1: training failed on every silo asked" in ended.details
    # Flower itself would say after a minute that the ClientApp stopped responding.
    assert "its session at the trunk broke off, and no reply followed" in ended.details
    shared.assert_idle(own)
    report = result(tmp_path)
    assert len(report.rounds[-1].failures) == 2
    assert "broke off" in report.failure


@pytest.mark.exhaustive
def test_clients_that_do_not_answer_in_time(shared, tiny, tmp_path):
    own = set(shared.listening())
    given = {**LONG, **ONE_OF_TWO, "round_timeout": 15.0}
    ended = shared.run(tiny.app, output_dir=str(tmp_path / "output"), **given)
    assert ended.status == "finished:failed"
    assert "no reply within 15 s" in ended.details
    shared.assert_idle(own)
    assert "no reply within 15 s" in result(tmp_path).failure


@pytest.mark.exhaustive
def test_a_quorum_that_is_missed(shared, training, tmp_path):
    steps = {"train__local_steps": 300, "strategy__min_replies": 2}
    run_id, own, clients = training(shared, **steps)
    clients[0].kill()
    ended = shared.wait(run_id)
    assert ended.status == "finished:failed"
    assert "training counts of 1 of 2 silos, and strategy.min-replies is 2" in ended.details
    shared.assert_idle(own)
    assert result(tmp_path).failure in ended.details


@pytest.mark.exhaustive
def test_a_trunk_that_is_cut_off(shared, training, tmp_path):
    """The ServerApp is frozen: nothing closes the connection, only keepalive finds out."""
    run_id, own, _ = training(shared, **ONE_OF_TWO)
    (server_app,) = shared.members("flwr-serverapp")
    server_app.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: not shared.members("flwr-clientapp"), "clients give up", 120.0)
    finally:
        server_app.send_signal(signal.SIGCONT)
    shared.flwr("stop", run_id)
    shared.assert_idle(own)


@pytest.mark.exhaustive
def test_a_frozen_client_is_left_out(shared, training, tmp_path):
    # The first to come, at once: the other's SuperNode may still be busy with a run before.
    run_id, own, clients = training(shared, silos=1, train__local_steps=300)
    clients[0].send_signal(signal.SIGSTOP)
    try:
        ended = shared.wait(run_id)
        assert ended.status == COMPLETED, f"{ended}\n{shared.logs()}"
        failures = result(tmp_path).rounds[-1].failures
        assert len(failures) == 1
        assert "its session at the trunk broke off" in str(failures)
    finally:
        clients[0].send_signal(signal.SIGCONT)
    shared.assert_idle(own)


def test_a_run_completes_after_all_of_these(shared, tiny, tmp_path):
    own = set(shared.listening())
    ended = shared.run(tiny.app, output_dir=str(tmp_path / "output"))
    assert ended.status == COMPLETED, f"{ended}\n{shared.logs()}"
    assert result(tmp_path).silos == ["0", "1"]
    assert result(tmp_path).rounds[-1].failures == {}
    shared.assert_idle(own)


@pytest.mark.exhaustive
def test_flower_finds_the_killed_server_app_by_itself(shared, killed_server_app):
    """A minute later, so this comes after what need not wait for it."""
    run_id, _ = killed_server_app
    ended = shared.wait(run_id)
    assert ended.status == "finished:failed"
    assert "heartbeat" in ended.details.lower()


def test_row_32_ctrl_c_on_the_superlink(shared, training, tmp_path):
    """The shared federation's, and so the last of its tests."""
    _, own, _ = training(shared, **ONE_OF_TWO)
    shared.signal("superlink", signal.SIGINT)
    shared.processes["superlink"].wait(SECONDS)
    shared.assert_idle(own, seconds=60.0)
    assert shared.port not in shared.listening()
    assert result(tmp_path).failure == STOPPED
    assert not shared.members("bin/flower-superlink")


@pytest.mark.exhaustive
def test_row_05_everything_is_told_to_end_at_once(start_federation, training, tmp_path):
    """As systemd stops a unit: SIGTERM to the SuperLink and to all of its children."""
    federation = start_federation(nodes=1)
    _, own, _ = training(federation, strategy__min_nodes=1)
    superlink = psutil.Process(federation.processes["superlink"].pid)
    for process in [superlink, *superlink.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    federation.processes["superlink"].wait(SECONDS)
    federation.assert_idle(own, seconds=60.0)
    assert result(tmp_path).failure == STOPPED
