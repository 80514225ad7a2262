"""A service's port for Prometheus: `/metrics` for whoever has the token, `/health` for anyone."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import uvicorn
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from flower_split.apps.monitoring.access import Access, read_token
from flower_split.apps.monitoring.listening import listening
from flower_split.apps.serving.http_connections import bounded
from flower_split.config.address import Address

MOST_CONNECTIONS = 32
ENDS = 5.0
"""Seconds that an answer under way has when the service ends."""


@contextmanager
def metrics_port(
    address: str,
    text: Callable[[], bytes],
    *,
    name: str,
    is_draining: Callable[[], bool] = lambda: False,
    token_file: Path | None = None,
) -> Iterator[str]:
    """Answer on a port, in a thread of its own, while the block runs.

    Args:
        address: `host:port`; port 0 takes a free one.
        text: The metrics as they are now, in Prometheus' text format. Called in that thread.
        name: What errors call the address.
        is_draining: Whether health is to say so, with status 503.
        token_file: File with the token that readers need. None asks for none on loopback, and
            elsewhere has one made for this user.

    Yields:
        Where it listens and which token it asks for, in words.

    Raises:
        ConfigError: the address cannot be listened on.
        StateError: the token file cannot be used.
    """
    place = Address.parse(address, what=name)
    token, told = "", ""
    if token_file is not None or not place.is_loopback:
        token, file = read_token(token_file)
        told = f", for which readers need the token in {file}"
    with listening(place, name) as bound:
        shown = Address(place.host, bound.getsockname()[1])
        config = uvicorn.Config(
            _app(text, is_draining, Access(token)),
            log_level="warning",
            timeout_graceful_shutdown=int(ENDS),
            lifespan="off",
            **bounded(connections=MOST_CONNECTIONS),
        )
        server = uvicorn.Server(config)
        thread = _serving(server, bound)
        try:
            yield f"http://{shown}/metrics{told}"
        finally:
            server.should_exit = True
            thread.join(2 * ENDS)


def _serving(server: uvicorn.Server, bound: socket.socket) -> Thread:
    thread = Thread(
        target=server.run, kwargs={"sockets": [bound]}, name="metrics-port", daemon=True
    )
    thread.start()
    return thread


def _app(text: Callable[[], bytes], is_draining: Callable[[], bool], access: Access) -> Starlette:
    async def metrics(request: Request) -> Response:
        scheme, _, told = request.headers.get("authorization", "").partition(" ")
        told = told.strip() if scheme.lower() == "bearer" else ""
        if not access.admits(request.headers.get("host", ""), told):
            return PlainTextResponse("The token of this port is needed, as a bearer.\n", 403)
        return Response(text(), media_type=CONTENT_TYPE_LATEST)

    async def health(_: Request) -> Response:
        if is_draining():
            return PlainTextResponse("draining\n", 503)
        return PlainTextResponse("ok\n")

    return Starlette(
        routes=[
            Route("/metrics", metrics, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
        ]
    )
