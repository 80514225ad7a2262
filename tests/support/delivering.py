"""Packs in tests: fetched without a wire, counted, interrupted, or told lies by."""

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import grpc
from tiny_models import tiny_model

from flower_split.delivery.cache import PartCache
from flower_split.delivery.fetching import fetch_pack
from flower_split.delivery.pack import Pack
from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.trunk_pb2_grpc import TrunkStub
from flower_split.server.grpc.server import TrunkServer
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.grpc.channel import channel_credentials
from flower_split.transport.grpc.handshake import ticket_message
from flower_split.transport.messages import PROTOCOL_VERSION, Ticket

MIB = 1 << 20
TICKETS = tuple(Ticket(run_id=1, node_id=2, server_round=3, token=f"t{i}") for i in range(8))


class DirectStream:
    """Reads a pack in this process; `on_piece` is called before every piece is handed over."""

    def __init__(
        self,
        pack: Pack,
        on_piece: Callable[[], None] = lambda: None,
        asked: list[tuple[str, int]] | None = None,
        piece: int = MIB,
    ) -> None:
        self.pack = pack
        self.on_piece = on_piece
        self.asked = [] if asked is None else asked
        self.piece = piece

    def read(self, digest: str, offset: int) -> Iterator[bytes]:
        self.asked.append((digest, offset))
        part = self.pack.find(digest)
        assert part is not None
        while offset < part.size:
            self.on_piece()
            data = part.read(offset, self.piece)
            offset += len(data)
            yield data

    def close(self) -> None:
        pass


def left(cache: PartCache) -> list[str]:
    """Names of everything in the folder of parts."""
    return sorted(path.name for path in cache.parts.iterdir())


def as_in_another_process(cache: PartCache) -> None:
    """Let nothing be known of what is in `cache` but what its files hold."""
    for path in cache.parts.iterdir():
        os.utime(path)


def unpacked(pack: Pack, folder: Path) -> Path:
    """The model's folder of `pack`, with a cache in `folder`."""
    fetched = fetch_pack(pack.digest, TICKETS, lambda _: DirectStream(pack), PartCache(folder))
    return fetched.folder


def save_model_of_several_mib(folder: Path) -> Path:
    """A random model whose ends are several pieces long."""
    model = tiny_model(
        layers=4, vocab_size=3000, hidden_size=256, intermediate_size=64, num_key_value_heads=4
    )
    model.save_pretrained(folder)
    return folder


class CuttingProxy:
    """Forwards to a port, and cuts each connection after a number of bytes towards the client.

    Args:
        port: On this machine.
        cuts: Bytes for the first connection, the second, …; the further ones are not cut.
    """

    def __init__(self, port: int, cuts: Sequence[int]) -> None:
        self._port = port
        self._cuts = list(cuts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._sockets: list[socket.socket] = []
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [client, server]
                room = self._cuts.pop(0) if self._cuts else None
                for pair in ((client, server, None), (server, client, room)):
                    thread = threading.Thread(target=self._forward, args=pair, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket, room: int | None) -> None:
        with contextlib.suppress(OSError):
            while room is None or room > 0:
                data = source.recv(65536 if room is None else min(room, 65536))
                if not data:
                    break
                target.sendall(data)
                room = None if room is None else room - len(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for end in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for end in (self._listener, *self._sockets):
            end.close()


class RawFetcher:
    """A silo without manners: asks for whatever a test wants, and reports how the stream ended."""

    def __init__(self, server: TrunkServer, tls: ServerTls) -> None:
        credentials = channel_credentials(ClientTls(ca=tls.ca))
        self._channel = grpc.secure_channel(server.address, credentials)
        self._requests: queue.SimpleQueue[pb.DeliverRequest | None] = queue.SimpleQueue()
        stub = TrunkStub(self._channel)  # type: ignore[no-untyped-call]
        self.call = stub.Deliver(iter(self._requests.get, None), timeout=60.0)

    def ask(self, digest: bytes = b"", offset: int = 0, ticket: Ticket | None = None) -> Self:
        request = pb.DeliverRequest(protocol_version=PROTOCOL_VERSION, digest=digest, offset=offset)
        if ticket is not None:
            request.ticket.CopyFrom(ticket_message(ticket))
        return self.send(request)

    def send(self, request: pb.DeliverRequest) -> Self:
        self._requests.put(request)
        return self

    def ending(self) -> tuple[int, grpc.StatusCode, str, str]:
        """Bytes that came, code, class of the error, details; reads the rest of the stream."""
        received = 0
        self._requests.put(None)
        with contextlib.suppress(grpc.RpcError):
            for reply in self.call:
                received += len(reply.data)
        metadata = dict(self.call.trailing_metadata())
        name = metadata.get("flower-split-error", "")
        return received, self.call.code(), name, self.call.details()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._requests.put(None)
        self.call.cancel()
        self._channel.close()
