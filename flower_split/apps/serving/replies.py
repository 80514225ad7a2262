"""Replies in OpenAI's form: whole ones, and the chunks of a stream."""

import json
import secrets
import time
from typing import Any

from flower_split.apps.using.prompts import ASSISTANT
from flower_split.apps.using.tuned_model import Answer

DONE = b"data: [DONE]\n\n"


class Replies:
    """Writes the replies to one request.

    Args:
        model: Name of the served model.
        is_chat: Whether a chat was asked for, and not a text to be continued.
    """

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._model = model
        self._is_chat = is_chat
        self._id = f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The reply that has everything."""
        said: dict[str, Any] = {"text": answer.text}
        if self._is_chat:
            said = {"message": {"role": ASSISTANT, "content": answer.text}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": _reason(answer)}
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": _usage(answer)}

    def begin(self) -> bytes:
        """The first chunk of a stream, which has no text."""
        return self._chunk({"role": ASSISTANT, "content": ""}) if self._is_chat else b""

    def piece(self, text: str) -> bytes:
        """A chunk with a piece of the answer."""
        return self._chunk({"content": text}, text)

    def end(self, answer: Answer, *, tells_usage: bool) -> bytes:
        """The last chunks."""
        last = self._chunk({}, "", _reason(answer))
        if tells_usage:
            last += event({**self._head(self._streamed), "choices": [], "usage": _usage(answer)})
        return last + DONE

    @property
    def _streamed(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _chunk(self, delta: dict[str, str], text: str = "", reason: str | None = None) -> bytes:
        said: dict[str, Any] = {"delta": delta} if self._is_chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return event({**self._head(self._streamed), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _reason(answer: Answer) -> str:
    return "stop" if answer.finish == "stop" else "length"


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.new_tokens,
        "total_tokens": answer.prompt_tokens + answer.new_tokens,
    }
