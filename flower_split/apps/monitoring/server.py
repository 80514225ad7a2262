"""The live page's server: a page, a stream that brings its parts that changed, and metrics."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from html import escape
from importlib.resources import files
from threading import Thread
from typing import Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from flower_split.apps.monitoring.access import Access
from flower_split.apps.serving.http_connections import bounded
from flower_split.reporting.live.metrics import CONTENT_TYPE
from flower_split.reporting.report.html import style

PARTS = ("top", "tiles", "silos", "losses", "rates", "bytes", "failures", "samples", "news")
RETRY_MS = 1000
"""After which a browser tries again when the stream has ended."""
BEAT = 15.0
"""Seconds after which a stream without news says that it lives."""
MOST_READERS = 50
MOST_CONNECTIONS = 2 * MOST_READERS
COOKIE = "flower-split-monitor"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
REFUSED = (
    "This page needs the token of the monitor that serves it: open the address that the monitor "
    "printed, or take the token from its file.\n"
)

Answer = Callable[[Request], Awaitable[Response]]


class Watched(Protocol):
    """A run that is looked at, wherever it is read from."""

    name: str

    def parts(self) -> dict[str, str]:
        """The parts of the page, HTML by name, as they are now."""

    def metrics(self) -> bytes | None:
        """The same in Prometheus' text format, UTF-8; None where they are told elsewhere."""


class MonitorServer:
    """The application that serves one run; every way in is a GET.

    Args:
        run: The run.
        access: Who is answered.
        pause: Seconds between two looks for a reader.
    """

    def __init__(self, run: Watched, access: Access, *, pause: float = 1.0) -> None:
        self._run = run
        self._access = access
        self._pause = pause
        self._readers = 0
        self.ends: Callable[[], bool] = lambda: False
        """Whether the server is about to end, and with it all streams."""
        self.app = Starlette(
            routes=[
                Route("/", self._guarded(self._page), methods=["GET"]),
                Route("/stream", self._guarded(self._stream), methods=["GET"]),
                Route("/live.js", self._guarded(self._script), methods=["GET"]),
                Route("/style.css", self._guarded(self._style), methods=["GET"]),
                Route("/metrics", self._guarded(self._metrics), methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
            ]
        )

    def _guarded(self, answer: Answer) -> Answer:
        async def guarded(request: Request) -> Response:
            told = request.cookies.get(COOKIE, "")
            asked = request.query_params.get("token")
            bearer = request.headers.get("authorization", "")
            if bearer.lower().startswith("bearer "):
                told = bearer[7:].strip()
            host = request.headers.get("host", "")
            if asked is not None and self._access.admits(host, asked):
                # Out of the address, which histories and logs keep.
                back = RedirectResponse(request.url.path, 303, HEADERS)
                if self._access.needs_token:
                    back.set_cookie(COOKIE, asked, httponly=True, samesite="strict")
                return back
            if not self._access.admits(host, told):
                return PlainTextResponse(REFUSED, 403, HEADERS)
            response = await answer(request)
            response.headers.update(HEADERS)
            return response

        return guarded

    async def _page(self, _: Request) -> Response:
        parts = self._run.parts()
        body = "".join(f'<div id="{name}">{parts[name]}</div>' for name in PARTS)
        title = escape(f"Run in {self._run.name}")
        return Response(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{title}</title>'
            '<link rel="stylesheet" href="style.css"></head><body>'
            '<div id="line" role="status" hidden>The monitor does not answer: trying again.</div>'
            f'<main>{body}</main><script src="live.js"></script></body></html>\n',
            media_type="text/html",
        )

    async def _stream(self, _: Request) -> Response:
        if self._readers >= MOST_READERS:
            return PlainTextResponse("Too many pages are open.\n", 503)
        return StreamingResponse(self.told(), media_type="text/event-stream")

    async def told(self) -> AsyncIterator[str]:
        """All parts first, for a page that comes back has missed some; then those that change."""
        self._readers += 1
        try:
            shown: dict[str, str] = {}
            silent = 0.0
            yield f"retry: {RETRY_MS}\n\n"
            while not self.ends():
                parts = self._run.parts()
                changed = {name: html for name, html in parts.items() if shown.get(name) != html}
                if changed:
                    shown, silent = parts, 0.0
                    yield f"event: parts\ndata: {json.dumps(changed)}\n\n"
                elif silent >= BEAT:
                    silent = 0.0
                    yield ": it lives\n\n"
                await asyncio.sleep(self._pause)
                silent += self._pause
        finally:
            self._readers -= 1

    async def _script(self, _: Request) -> Response:
        return Response(_file("live.js"), media_type="text/javascript")

    async def _style(self, _: Request) -> Response:
        return Response(style() + _file("live.css"), media_type="text/css")

    async def _metrics(self, _: Request) -> Response:
        metrics = self._run.metrics()
        if metrics is None:
            where = f"The monitor at {self._run.name} has the metrics.\n"
            return PlainTextResponse(where, 404)
        return Response(metrics, media_type=CONTENT_TYPE)

    async def _health(self, _: Request) -> Response:
        return PlainTextResponse("ok\n", headers=HEADERS)


def _file(name: str) -> str:
    return files("flower_split.reporting.live").joinpath(name).read_text(encoding="utf-8")


def serve_on(
    listening: socket.socket,
    monitor: MonitorServer,
    *,
    lasts: Callable[[], None] | None = None,
) -> None:
    """Serve on a bound socket until the process is told to end; pages that are open find out.

    Args:
        listening: The socket.
        monitor: What is served.
        lasts: Called in a thread of its own; serving ends when it returns. None lets it go on.
    """
    config = uvicorn.Config(
        monitor.app,
        log_level="warning",
        timeout_graceful_shutdown=5,
        lifespan="off",
        **bounded(connections=MOST_CONNECTIONS),
    )
    server = uvicorn.Server(config)
    monitor.ends = lambda: server.should_exit
    if lasts is not None:

        def end() -> None:
            lasts()
            server.should_exit = True

        Thread(target=end, name="monitor-end", daemon=True).start()
    server.run(sockets=[listening])
