"""Requests in OpenAI's form, every field of which is checked before anything is computed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flower_split.apps.serving.problems import RequestError
from flower_split.apps.using.prompts import ASSISTANT, SYSTEM, USER, Turn
from flower_split.apps.using.tuned_model import Sampling

MOST_STOPS, LONGEST_STOP = 4, 256
MOST_TURNS = 1024

_ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT}
_LARGEST_SEED = 2**63 - 1

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that may say nothing but what is so anyway."""
_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier"})
"""Fields that are the caller's own affair."""
_USED = frozenset(
    {
        *("model", "stream", "stream_options", "temperature", "top_p", "seed", "stop"),
        *("max_tokens", "max_completion_tokens"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asks for."""

    turns: tuple[Turn, ...] = ()
    """Of a chat."""
    prompt: str = ""
    """A text to be continued, where it is no chat."""
    sampling: Sampling
    streams: bool = False
    """Whether the answer is sent piece by piece."""
    tells_usage: bool = False
    """Whether a stream ends with the numbers of tokens."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a request may ask for, and what is taken where it does not say."""

    model: str
    """Name of the served model."""
    max_new_tokens: int
    temperature: float


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        RequestError: it is none.
    """
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not valid JSON", code="invalid_json") from error
    if not isinstance(found, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    return {key: value for key, value in found.items() if value is not None}


def chat_request(fields: Mapping[str, Any], bounds: Bounds) -> Asked:
    """What a request to `/v1/chat/completions` asks for.

    Raises:
        RequestError: with the first field that is wrong.
    """
    _check_names(fields, "messages")
    messages = fields.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_TURNS:
        raise RequestError(
            f"messages must be a list of 1 to {MOST_TURNS} messages", param="messages"
        )
    turns = tuple(_turn(one, f"messages[{n}]") for n, one in enumerate(messages))
    if turns[-1]["role"] != USER:
        raise RequestError("the last message must be the user's", param="messages")
    return _asked(fields, bounds, turns=turns)


def completion_request(fields: Mapping[str, Any], bounds: Bounds) -> Asked:
    """What a request to `/v1/completions` asks for.

    Raises:
        RequestError: with the first field that is wrong.
    """
    _check_names(fields, "prompt")
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str) or not prompt:
        raise RequestError("prompt must be one text that is not empty", param="prompt")
    return _asked(fields, bounds, prompt=prompt)


def _asked(fields: Mapping[str, Any], bounds: Bounds, **what: Any) -> Asked:
    model = fields.get("model", bounds.model)
    if model != bounds.model:
        said = repr(model)[:100] if isinstance(model, str) else "that"
        raise RequestError(
            f"there is no model {said} here, but {bounds.model!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
    options = fields.get("stream_options", {})
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise RequestError("stream_options may have include_usage", param="stream_options")
    streams = _boolean("stream", fields.get("stream", False))
    if options and not streams:
        raise RequestError("stream_options needs stream", param="stream_options")
    return Asked(
        sampling=_sampling(fields, bounds),
        streams=streams,
        tells_usage=_boolean("stream_options", options.get("include_usage", False)),
        **what,
    )


def _sampling(fields: Mapping[str, Any], bounds: Bounds) -> Sampling:
    if {"max_tokens", "max_completion_tokens"} <= fields.keys():
        raise RequestError(
            "max_tokens and max_completion_tokens say the same: send one", param="max_tokens"
        )
    name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    most = bounds.max_new_tokens
    top_p = _number("top_p", fields["top_p"], 0.0, 1.0) if "top_p" in fields else None
    if top_p == 0.0:
        raise RequestError("top_p must be above 0", param="top_p")
    seed = None
    if "seed" in fields:
        seed = _whole("seed", fields["seed"], 0, _LARGEST_SEED)
    return Sampling(
        max_new_tokens=_whole(name, fields.get(name, most), 1, most),
        temperature=_number("temperature", fields.get("temperature", bounds.temperature), 0.0, 2.0),
        top_p=top_p,
        seed=seed,
        stop=_stop(fields.get("stop", [])),
    )


def _check_names(fields: Mapping[str, Any], asks: str) -> None:
    for name, value in fields.items():
        if name == asks or name in _USED or name in _IGNORED:
            continue
        shown = name[:100]
        if name not in _NEUTRAL:
            raise RequestError(f"unknown field {shown!r}: leave it out", param=shown)
        if not any(value == one and type(value) is type(one) for one in _known(name)):
            raise RequestError(
                f"{shown} is not supported here: leave it out", param=shown, code="unsupported"
            )


def _known(name: str) -> tuple[Any, ...]:
    """What a neutral field may be, a whole number also as one with a point."""
    values = _NEUTRAL[name]
    wholes = tuple(float(one) for one in values if type(one) is int)
    return (*values, *wholes)


def _turn(one: Any, where: str) -> Turn:
    if not isinstance(one, dict) or not {"role", "content"} <= one.keys():
        raise RequestError(f"{where} must have role and content", param=where)
    if unknown := sorted(key for key, held in one.items() if key not in _TURN and held):
        raise RequestError(f"{where} has {unknown[0][:100]!r}, which is not supported", param=where)
    role = one["role"]
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestError(
            f"{where}.role must be one of {', '.join(_ROLES)}", param=f"{where}.role"
        )
    return {"role": _ROLES[role], "content": _content(one["content"], f"{where}.content")}


_TURN = frozenset({"role", "content"})


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [None]
    texts = list[str]()
    for part in parts:
        held = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(held, str):
            raise RequestError(
                f"{where} must be a text, or a list of parts of type text", param=where
            )
        texts.append(held)
    return "".join(texts)


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    fits = isinstance(texts, list) and len(texts) <= MOST_STOPS
    if not fits or not all(isinstance(t, str) and 0 < len(t) <= LONGEST_STOP for t in texts):
        raise RequestError(
            f"stop must be a text or up to {MOST_STOPS} of them, each of 1 to {LONGEST_STOP} "
            "characters",
            param="stop",
        )
    return tuple(texts)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false", param=name)
    return value


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{name} must be a whole number from {low} to {high}", param=name)
    return value


def _number(name: str, value: Any, low: float, high: float) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not low <= value <= high:
        raise RequestError(f"{name} must be a number from {low:g} to {high:g}", param=name)
    return float(value)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
