"""The emulated link: what it delays, limits and counts, and that nothing of it stays behind.

Lower bounds are exact; upper ones leave room for a machine that is many times slower.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from hosting import eventually, nothing_left
from throughput.slow_link import Line, slow_link

SECONDS = 30.0


@contextmanager
def target(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server whose one connection is handed to `serve`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)

        def run() -> None:
            with listener.accept()[0] as near:
                near.settimeout(SECONDS)
                serve(near)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(SECONDS)
        assert not thread.is_alive()


def connect(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)


def read_all(end: socket.socket) -> bytes:
    """Everything until the other end's half is closed."""
    return b"".join(iter(lambda: end.recv(1 << 16), b""))


def echo(near: socket.socket) -> None:
    while data := near.recv(1 << 16):
        near.sendall(data)


@pytest.mark.medium
def test_each_direction_is_delayed() -> None:
    with (
        target(echo) as port,
        slow_link(port, Line(delay=0.2), Line(delay=0.1)) as link,
        connect(link.address) as end,
    ):
        for _ in range(2):
            began = time.monotonic()
            end.sendall(b"ping")
            assert end.recv(4) == b"ping"
            assert 0.3 <= time.monotonic() - began < SECONDS


def test_the_rate_is_a_direction_s_own() -> None:
    """The way back is ten times as fast, and is not held up by the way there."""
    size, arrived = 1 << 18, list[float]()

    def exchange(near: socket.socket) -> None:
        near.sendall(bytes(size))
        assert len(read_all(near)) == size
        arrived.append(time.monotonic())

    with target(exchange) as port:
        up, down = Line(rate=size / 0.5), Line(rate=size / 0.05)
        with slow_link(port, up, down) as link, connect(link.address) as end:
            began = time.monotonic()
            sender = threading.Thread(target=end.sendall, args=(bytes(size),))
            sender.start()
            received = 0
            while received < size:
                received += len(end.recv(1 << 16))
            downward = time.monotonic() - began
            sender.join()
            end.shutdown(socket.SHUT_WR)
            read_all(end)
    assert downward >= 0.05
    assert 0.5 <= arrived[0] - began < SECONDS


@pytest.mark.medium
def test_a_long_line_is_no_narrower() -> None:
    """With a window of 64 KiB a round trip, this would take more than a minute."""
    size = 4 << 20
    got = list[int]()
    with target(lambda near: got.append(len(read_all(near)))) as port:
        line = Line(delay=0.5, rate=size / 0.5)
        with slow_link(port, line) as link, connect(link.address) as end:
            began = time.monotonic()
            end.sendall(bytes(size))
            end.shutdown(socket.SHUT_WR)
            assert read_all(end) == b""
            assert 1.5 <= time.monotonic() - began < SECONDS
    assert got == [size]


def test_bytes_arrive_in_order_and_are_counted() -> None:
    sent, answer, got = os.urandom(300_001), os.urandom(200_003), list[bytes]()

    def serve(near: socket.socket) -> None:
        got.append(read_all(near))
        near.sendall(answer)

    line = Line.of(round_trip_ms=2, mbit=200)
    assert line == Line(delay=0.001, rate=25e6)
    with target(serve) as port, slow_link(port, line) as link, connect(link.address) as end:
        end.sendall(sent)
        end.shutdown(socket.SHUT_WR)  # the half of the way back stays open
        assert read_all(end) == answer
        assert (link.upward, link.downward) == (len(sent), len(answer))
    assert got == [sent]


def test_an_end_that_breaks_off_is_noticed_at_the_other() -> None:
    def reset(near: socket.socket) -> None:
        near.recv(1)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with target(reset) as port, slow_link(port) as link, connect(link.address) as end:
        end.sendall(b"x")
        _until_cut(end)


def test_a_target_that_is_not_there_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with slow_link(port) as link, connect(link.address) as end:
        _until_cut(end)


def test_closing_the_link_cuts_what_is_open_and_leaves_nothing() -> None:
    with nothing_left():
        descriptors = len(os.listdir("/proc/self/fd"))
        with target(_until_cut) as port:
            with slow_link(port, Line(delay=60.0)) as link:
                address = link.address
                end = connect(address)
                end.sendall(b"still on its way for a minute")
                assert eventually(lambda: link.upward > 0)
            _until_cut(end)
            end.close()
            with pytest.raises(ConnectionRefusedError):
                connect(address)
        assert len(os.listdir("/proc/self/fd")) == descriptors


def _until_cut(end: socket.socket) -> None:
    """Wait for the end of the connection, orderly or not."""
    with suppress(ConnectionError):
        assert end.recv(1) == b""
