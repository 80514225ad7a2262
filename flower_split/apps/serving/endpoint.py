"""The endpoint: an ASGI application with OpenAI's paths, in front of a tuned model."""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from flower_split.apps.debugging import debugging
from flower_split.apps.serving.problems import RequestError
from flower_split.apps.serving.replies import Replies, event
from flower_split.apps.serving.requests import (
    Asked,
    Bounds,
    chat_request,
    completion_request,
    parse_object,
)
from flower_split.apps.serving.turns import Came, Turns
from flower_split.apps.using.tuned_model import Answer, TunedModel
from flower_split.config.address import is_loopback
from flower_split.errors import FlowerSplitError, PromptError

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_BYTES = 1 << 20
"""Of a request's body."""
BODY_SECONDS = 30.0
"""For which a body may take to arrive."""
POLL_SECONDS = 0.2


class Endpoint:
    """Answers requests.

    Args:
        model: Answers prompts.
        bounds: Of the requests.
        api_key: What a request must bring as its bearer token; empty asks for none, and believes
            only requests that were sent to a name of this machine's loopback.
        waiting: Requests that may wait while one is answered.
    """

    def __init__(
        self, model: TunedModel, bounds: Bounds, *, api_key: str = "", waiting: int = 8
    ) -> None:
        self._model = model
        self._bounds = bounds
        self._key = _digest(api_key) if api_key else b""
        self._turns = Turns(model, waiting)
        self.app = Starlette(
            routes=[
                Route("/health", self._guarded(self._health), methods=["GET"]),
                Route("/v1/models", self._guarded(self._models), methods=["GET"]),
                Route("/v1/models/{name}", self._guarded(self._one_model), methods=["GET"]),
                Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
                Route("/v1/completions", self._guarded(self._completion), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _not_there},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self._turns.close)

    def _guarded(
        self, handle: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                self._check_caller(request)
                return await handle(request)
            except RequestError as error:
                return _refused(error)
            except PromptError as error:
                return _refused(RequestError(str(error), code="prompt_refused"))
            except FlowerSplitError as error:
                logger.error("a request was not answered: %s", error)
                return _refused(RequestError(str(error), status=503))
            except ClientDisconnect:
                return Response(status_code=499)  # which nobody reads
            except Exception as error:  # of torch's or transformers'; it may quote a prompt
                name = type(error).__name__
                logger.error("a request was not answered: %s", name, exc_info=debugging())
                return _refused(RequestError(f"the model failed with {name}", status=500))

        return guarded

    def _check_caller(self, request: Request) -> None:
        if not self._key:
            host = request.headers.get("host", "")
            name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
            if not is_loopback(name):
                # A page that a browser has open can have a name of its own lead to 127.0.0.1.
                raise RequestError(
                    "without an API key requests are answered on localhost only: send it to "
                    "http://127.0.0.1, or start the server with --api-key-file",
                    status=403,
                )
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(token), self._key):
            raise RequestError(
                "a wrong API key, or none: send it as Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
            )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _one_model(self, request: Request) -> Response:
        if request.path_params["name"] != self._bounds.model:
            raise RequestError("there is no such model", status=404, code="model_not_found")
        return JSONResponse(self._described())

    def _described(self) -> dict[str, object]:
        return {
            "id": self._bounds.model,
            "object": "model",
            "created": 0,
            "owned_by": "flower-split",
        }

    async def _chat(self, request: Request) -> Response:
        asked = chat_request(parse_object(await _body(request)), self._bounds)
        return await self._reply(request, asked, self._model.form.ids(asked.turns), is_chat=True)

    async def _completion(self, request: Request) -> Response:
        asked = completion_request(parse_object(await _body(request)), self._bounds)
        ids = self._model.form.plain_ids(asked.prompt)
        return await self._reply(request, asked, ids, is_chat=False)

    async def _reply(
        self, request: Request, asked: Asked, ids: list[int], *, is_chat: bool
    ) -> Response:
        self._model.check(ids)
        replies = Replies(self._bounds.model, is_chat=is_chat)
        pieces = self._turns.pieces(ids, asked.sampling, goes_on=not is_chat)
        if not asked.streams:
            answer = await _while_connected(request, _whole(pieces))
            return JSONResponse(replies.whole(answer))
        # What is wrong so far has a status of its own; afterwards the stream has begun.
        first = await _while_connected(request, _next(pieces))
        return StreamingResponse(
            _events(first, pieces, replies, asked),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )


async def _body(request: Request) -> bytes:
    """The body of a request, as far as it may be one.

    Raises:
        RequestError: it is too large, too slow, or not said to be JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Which a page that a browser has open cannot send without being allowed to.
        raise RequestError("send the body as Content-Type: application/json", status=415)
    too_large = RequestError(f"the body has more than {MOST_BYTES} bytes", status=413)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > MOST_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise too_large
    except TimeoutError as error:
        raise RequestError("the body took too long to arrive", status=408) from error
    return bytes(body)


async def _next(pieces: AsyncGenerator[Came, None]) -> Came:
    return await anext(pieces)


async def _whole(pieces: AsyncGenerator[Came, None]) -> Answer:
    async with aclosing(pieces):
        async for item in pieces:
            if isinstance(item, Answer):
                return item
    raise RequestError("the server is stopping", status=503)


async def _while_connected(request: Request, coming: Coroutine[Any, Any, T]) -> T:
    """The result of `coming`, which is cancelled where the caller is gone.

    Raises:
        ClientDisconnect: nobody waits for it.
    """
    task = asyncio.ensure_future(coming)
    try:
        while not (await asyncio.wait({task}, timeout=POLL_SECONDS))[0]:
            if await request.is_disconnected():
                raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()


async def _events(
    first: Came, pieces: AsyncGenerator[Came, None], replies: Replies, asked: Asked
) -> AsyncIterator[bytes]:
    async with aclosing(pieces):
        try:
            yield replies.begin()
            item = first
            while not isinstance(item, Answer):
                yield replies.piece(item)
                item = await anext(pieces)
            yield replies.end(item, tells_usage=asked.tells_usage)
        except FlowerSplitError as error:
            logger.error("an answer ended early: %s", error)
            yield event(RequestError(str(error), status=503).body)
        except Exception as error:
            name = type(error).__name__
            logger.error("an answer ended early: %s", name, exc_info=debugging())
            yield event(RequestError(f"the model failed with {name}", status=500).body)


async def _not_there(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    wrong = "method" if status == 405 else "path"
    return _refused(
        RequestError(
            f"there is no such {wrong}: GET /v1/models, POST /v1/chat/completions and "
            "POST /v1/completions are answered",
            status=status,
        )
    )


def _refused(problem: RequestError) -> Response:
    return JSONResponse(problem.body, problem.status, headers=problem.headers)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
