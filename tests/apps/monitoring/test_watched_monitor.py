"""A monitor elsewhere is shown as it is, also when it ends and returns; what is none is refused."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from flower_split.apps.monitoring.access import Access
from flower_split.apps.monitoring.server import PARTS, MonitorServer, serve_on
from flower_split.apps.monitoring.watched_monitor import WatchedMonitor
from flower_split.apps.monitoring.watched_run import WatchedRun
from flower_split.config.address import Address
from flower_split.errors import ConfigError

TOKEN = "a-token-of-some-length"


@contextmanager
def served(monitor, port=0):
    """The address at which a monitor is served while the block runs."""
    ends = threading.Event()
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    with listening:
        thread = threading.Thread(
            target=serve_on, args=(listening, monitor), kwargs={"lasts": ends.wait}
        )
        thread.start()
        try:
            yield Address("127.0.0.1", listening.getsockname()[1])
        finally:
            ends.set()
            thread.join(20)


@contextmanager
def watched(address, token=""):
    watching = WatchedMonitor(address, token)
    try:
        yield watching
    finally:
        watching.close()


def until(holds):
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)


def monitor_of(run, token=""):
    return MonitorServer(WatchedRun(run), Access(token), pause=0.02)


@pytest.mark.medium
def test_it_shows_what_the_other_shows_and_goes_on_when_that_comes_back(run, log, loss):
    with served(monitor_of(run, TOKEN)) as address, watched(address, TOKEN) as watching:
        assert watching.parts() == WatchedRun(run).parts()
        page = TestClient(MonitorServer(watching, Access()).app, base_url="http://localhost:8765")
        assert "tiny-model" in page.get("/").text and str(address) in page.get("/").text
        assert page.get("/metrics").status_code == 404
        loss(log, "south", 0, 7.75)
        until(lambda: "7.75" in watching.parts()["silos"])
    with watched_again(run, address) as watching:
        until(lambda: "does not answer" not in watching.parts()["top"])


@contextmanager
def watched_again(run, address):
    with served(monitor_of(run), address.port):
        watching = WatchedMonitor(address)
    until(lambda: "does not answer" in watching.parts()["top"])
    with served(monitor_of(run), address.port):
        yield watching
    watching.close()


def test_without_its_token_it_says_how_to_name_it(run, log):
    with served(monitor_of(run, TOKEN)) as address:
        for token in ("", "another-token-of-some-length"):
            with pytest.raises(ConfigError, match="--run-token-file"):
                WatchedMonitor(address, token)


def test_where_nothing_listens_it_says_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", free.getsockname()[1])
    with pytest.raises(ConfigError, match=r"no monitor answers at .*monitor = true"):
        WatchedMonitor(address)


async def _answers(_):
    return PlainTextResponse("hello")


def _streams(*told):
    async def stream(_):
        return StreamingResponse(iter(told), media_type="text/event-stream")

    return stream


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (_answers, "is no monitor of flower-split"),
        (_streams("event: parts\ndata: {\n\n"), "tells no parts"),
        (_streams("event: parts\ndata: [1]\n\n"), "another version"),
        (_streams('event: parts\ndata: {"top": 1, "evil": "x"}\n\n'), "another version"),
        (_streams(*["x" * (1 << 20)] * 18), "more than a page holds"),
        (_streams(": hello\n\n"), "ended its stream"),
    ],
)
@pytest.mark.medium
def test_what_is_no_monitor_is_refused(run, stream, said):
    other = monitor_of(run)
    other.app = Starlette(routes=[Route("/stream", stream)])
    with served(other) as address, pytest.raises(ConfigError, match=said):
        WatchedMonitor(address)


def test_a_page_has_only_parts_that_it_knows_and_no_text_that_cannot_be_sent(run, log):
    told = ",".join(f'"{name}": "\\ud800 {name}"' for name in PARTS)
    other = monitor_of(run)
    stream = _streams("event: parts\ndata: {" + told + ', "evil": "x"}\n\n')
    other.app = Starlette(routes=[Route("/stream", stream)])
    with served(other) as address, watched(address) as watching:
        assert set(watching.parts()) == set(PARTS)
        page = TestClient(MonitorServer(watching, Access()).app, base_url="http://localhost:1")
        assert "? tiles" in page.get("/").text
