"""Peers that are slow, or send too much, lose their connection, and others are answered."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn")

from flower_split.apps.serving import http_connections  # noqa: E402

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
SECONDS = 60.0


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Two bytes, or for `/large` more than any buffer holds."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(256 if scope["path"] == "/large" else 0):
        body = {"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True}
        await send(body)
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def served(connections: int) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        bounds = http_connections.bounded(connections=connections)
        config = uvicorn.Config(answer, log_level="critical", lifespan="off", **bounds)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(SECONDS)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(http_connections, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(http_connections, "READ_SECONDS", 0.3)
    with served(4) as found:
        yield found


def said(address: tuple[str, int], *parts: bytes) -> bytes:
    """Everything that comes until the server closes the connection."""
    with socket.create_connection(address, SECONDS) as connection:
        found = b""
        try:
            for part in parts:
                connection.sendall(part)
            while more := connection.recv(1 << 16):
                found += more
        except ConnectionError:
            pass
        return found


def is_answered(address: tuple[str, int]) -> bool:
    return said(address, GET + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200 OK")


def test_connections_that_say_nothing_make_room_in_time(address: tuple[str, int]) -> None:
    mute = [socket.create_connection(address, SECONDS) for _ in range(5)]
    try:
        for one in mute:
            assert one.recv(1) == b""  # closed by the server
    finally:
        for one in mute:
            one.close()
    assert is_answered(address)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([GET, b"X: y"], id="half a head"),
        pytest.param([GET + b"\r\n", GET], id="half of a second one"),
        pytest.param([GET + b"X: ", *[b"a" * 65536] * 64], id="a header without end"),
        pytest.param([GET, *[b"a: b\r\n" * 10_000] * 64], id="headers without end"),
    ],
)
def test_a_head_that_does_not_end_ends_its_connection(
    address: tuple[str, int], parts: list[bytes]
) -> None:
    assert b"HTTP/1.1 200 OK" not in said(address, *parts).replace(b"HTTP/1.1 200 OK", b"", 1)
    assert is_answered(address)


def test_a_reader_that_does_not_read_ends_its_connection(address: tuple[str, int]) -> None:
    with socket.create_connection(address, SECONDS) as connection:
        connection.sendall(GET.replace(b"/", b"/large", 1) + b"\r\n")
        threading.Event().wait(1.0)  # until the server has given up; then what is in the buffers
        count = 0
        try:
            while more := connection.recv(1 << 20):
                count += len(more)
        except ConnectionError:
            pass
    assert 0 < count < 128 << 20
    assert is_answered(address)


def test_one_connection_carries_requests_one_after_the_other(address: tuple[str, int]) -> None:
    with socket.create_connection(address, SECONDS) as connection:
        for _ in range(3):
            connection.sendall(GET + b"\r\n")
            found = b""
            while b"ok" not in found:
                found += connection.recv(1 << 16)
            assert found.startswith(b"HTTP/1.1 200 OK")
