"""Parts of the soak: what it takes for growth, a known reason, a good loss; and a toy soak."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from soak_measures import (
    Measures,
    Sample,
    counted,
    files_in,
    growth_problems,
    kind_of,
    loss_problem,
)
from soak_proxy import CuttableProxy


def life(values, seconds=600.0):
    """Samples of a process whose descriptors, threads and memory all go by `values`."""
    step = seconds / (len(values) - 1)
    return [
        Sample(seconds=i * step, descriptors=value, threads=value, mib=float(value))
        for i, value in enumerate(values)
    ]


def problems_of(values, **options):
    return growth_problems(Measures(samples={("silo0", 7): life(values, **options)}).table())


def test_what_fills_up_in_the_beginning_is_no_growth():
    assert problems_of([10, 50, 100, 100, 100, 101, 100, 99, 100, 100, 100, 100]) == []


def test_what_goes_on_growing_is_told_with_its_figures():
    told = problems_of([100 + 20 * i for i in range(12)])
    assert len(told) == 3
    assert told[0].startswith("silo0 (process 7) went from ")
    assert told[0].endswith(" descriptors in 10.0 minutes")


def test_a_peak_is_no_growth():
    assert problems_of([100] * 6 + [900] + [100] * 6) == []


@pytest.mark.parametrize(
    ("values", "seconds"), [(range(0, 900, 100), 30.0), (range(0, 700, 100), 600.0)]
)
def test_a_short_life_or_a_few_samples_tell_nothing(values, seconds):
    assert problems_of(list(values), seconds=seconds) == []


@pytest.mark.parametrize(
    "reason",
    [
        "its session at the trunk broke off, and no reply followed",
        "no reply within 120 s",
        "the silo did not finish its session at the trunk",
        "TrunkUnavailableError: trunk at 127.0.0.1:9000: UNAVAILABLE: Socket closed",
        "CertificateError: trunk at 127.0.0.1:44765: the TLS handshake failed",
        "Error: Node Unavailable — The destination node failed to report a heartbeat",
        "finished:failed: No heartbeat received from the task",
        "finished:failed: RoundError: round 1: training failed on every silo asked:\n- node 1: …",
        "trunk at 127.0.0.1:9000: silo: another node of this run is named '2' too. Give every",
        "trunk at 127.0.0.1:9000: the session is lost: the trunk was restarted, or has ended",
        "trunk at 127.0.0.1:9000: something accepts connections there and is no trunk, or",
        "Reply message objects are unavailable. The sender may not have completed the upload",
    ],
)
def test_reasons_that_the_faults_have_are_known(reason):
    assert kind_of(reason)


@pytest.mark.parametrize(
    "reason",
    [
        *("KeyError: 'x'", "", "the norm of its update", "TypeError: trunk at 127.0.0.1:9000"),
        "trunk at 127.0.0.1:9000: h1: hidden size 3, the trunk's is 4",
    ],
)
def test_others_are_not(reason):
    assert counted([reason]) == ({}, [reason])


@pytest.mark.parametrize(
    ("losses", "wrong"),
    [
        ([3.0, 2.0], False),
        ([3.0, 2.3], False),
        ([3.0, 1.7], False),
        ([3.0, 2.4], True),
        ([3.0, 1.6], True),
        ([3.0, float("nan")], True),
        ([], True),
    ],
)
def test_a_loss_is_good_within_the_band_around_the_undisturbed_one(losses, wrong):
    said = loss_problem("lap 1", losses, [3.0, 2.5, 2.0], 0.35)
    assert bool(said) == wrong
    assert not wrong or said.startswith("lap 1 ")


def test_files_are_counted_at_any_depth(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("x", "a/y", "a/b/z"):
        (tmp_path / name).touch()
    assert files_in(tmp_path) == 3


@pytest.fixture
def echo():
    """Port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    near, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(near,), daemon=True).start()

        def answer(near):
            with near:
                try:
                    while data := near.recv(100):
                        near.sendall(data)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def asked(connection, text):
    connection.sendall(text)
    return connection.recv(100)


def test_a_proxy_forwards_cuts_and_forwards_again(echo):
    with CuttableProxy(echo) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as one:
            assert asked(one, b"a") == b"a"
            assert (proxy.connections, proxy.cut(), proxy.connections) == (1, 1, 0)
            with pytest.raises(OSError):
                while True:
                    assert asked(one, b"b") == b"", "it is cut off"
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as other:
            assert asked(other, b"c") == b"c"


def test_a_silent_proxy_keeps_what_it_gets_until_then(echo):
    with (
        CuttableProxy(echo) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as one,
    ):
        assert asked(one, b"a") == b"a"
        proxy.silence(0.5)
        begun = time.monotonic()
        assert asked(one, b"b") == b"b"
        assert time.monotonic() - begun >= 0.5


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_a_toy_soak_ends_well(tmp_path):
    script = Path(__file__).with_name("soak.py")
    given = ["--minutes", "1", "--silos", "2", "--rounds", "2", "--every", "25"]
    done = subprocess.run(
        [sys.executable, str(script), *given, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["problems"] == []
    assert len(report["laps"]) >= 2 and report["faults"]
