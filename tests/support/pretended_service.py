"""A process at a silo service's socket that is none, or one that goes wrong where a test says."""

import socket
import threading
from contextlib import contextmanager, suppress

from flower_split.apps.silo_service import frames, greeting
from flower_split.apps.silo_service.socket_folder import SOCKET
from flower_split.errors import FlowerSplitError
from flower_split.proto.silo_pb2 import Answer, Ready, Request


@contextmanager
def pretending(folder, act):
    """Does `act(connection)` with the first that connects to the socket in `folder`."""
    folder.chmod(0o700)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(folder / SOCKET))
    (folder / SOCKET).chmod(0o600)
    server.listen(1)

    def serve():
        with suppress(OSError, FlowerSplitError):
            connection, _ = server.accept()
            with connection:
                act(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.close()
        thread.join(30.0)
        (folder / SOCKET).unlink()


def greeted(connection):
    """The service's part up to the offer, which is returned."""
    frames.receive(connection, Request, seconds=30.0)
    frames.send(connection, Answer(greeting=greeting.greeting()), seconds=30.0)
    return frames.receive(connection, Request, seconds=30.0, most=frames.MOST_BYTES).offer


def begun(connection):
    """The service's part up to the word to begin."""
    greeted(connection)
    frames.send(connection, Answer(ready=Ready()), seconds=30.0)
    frames.receive(connection, Request, seconds=30.0)
