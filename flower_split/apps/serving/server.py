"""The server process: its port, its key, and its end."""

import socket
from pathlib import Path

import uvicorn

from flower_split.apps.serving.endpoint import Endpoint
from flower_split.apps.serving.http_connections import bounded
from flower_split.config.address import Address
from flower_split.errors import ConfigError

MOST_CONNECTIONS = 64
STOP_SECONDS = 5
SHORTEST_KEY, LONGEST_KEY = 16, 512
"""Characters of an API key."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` and `port`, 0 for a free one.

    Raises:
        ConfigError: the port is taken, or the host is not this machine's.
    """
    at = Address(host, port)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
            found.listen(MOST_CONNECTIONS)
        except OSError:
            found.close()
            raise
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise ConfigError(
            f"cannot listen at {at}: {reason}. Choose another port with --port (0 takes a free "
            "one), or another --host"
        ) from error
    return found


def read_key(path: Path) -> str:
    """The API key in a file.

    Raises:
        ConfigError: it cannot be read, others may read it, or it is no key.
    """
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            key = file.read(LONGEST_KEY + 2).strip()
    except OSError as error:
        raise ConfigError(f"--api-key-file {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(
            f"--api-key-file {path} may be read or written by others: chmod 600 {path}"
        )
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY or not all(33 <= byte < 127 for byte in key):
        raise ConfigError(
            f"--api-key-file {path} must hold one line of {SHORTEST_KEY} to {LONGEST_KEY} ASCII "
            "characters without blanks, such as openssl rand -hex 32 makes"
        )
    return key.decode("ascii")


def server(endpoint: Endpoint) -> uvicorn.Server:
    """A server that answers requests until it is interrupted or told to end.

    Its `run(sockets=[…])` raises KeyboardInterrupt after Ctrl-C, when the answer in the making has
    ended.
    """
    return uvicorn.Server(
        uvicorn.Config(
            endpoint.app,
            log_level="error",
            timeout_graceful_shutdown=STOP_SECONDS,
            lifespan="on",
            **bounded(connections=MOST_CONNECTIONS),
        )
    )
