"""Requests: OpenAI's fields, each taken as it is meant or refused by its name."""

import json

import pytest

from flower_split.apps.serving.problems import RequestError
from flower_split.apps.serving.requests import (
    Bounds,
    chat_request,
    completion_request,
    parse_object,
)

BOUNDS = Bounds(model="mine", max_new_tokens=64, temperature=0.5)
ASK = {"messages": [{"role": "user", "content": "hello"}]}


def test_what_is_not_said_is_the_servers() -> None:
    asked = chat_request(ASK, BOUNDS)
    assert asked.turns == ({"role": "user", "content": "hello"},)
    assert (asked.sampling.max_new_tokens, asked.sampling.temperature) == (64, 0.5)
    assert not asked.streams and asked.sampling.stop == () and asked.sampling.seed is None


def test_what_is_said_is_taken() -> None:
    fields = {
        "model": "mine",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c", "refusal": None},
            {"role": "user", "content": "d"},
        ],
        "max_completion_tokens": 5,
        "temperature": 1,
        "top_p": 0.9,
        "seed": 7,
        "stop": "\n",
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "presence_penalty": 0.0,
        "logprobs": False,
        "user": "me",
    }
    asked = chat_request(fields, BOUNDS)
    assert [turn["role"] for turn in asked.turns] == ["system", "user", "assistant", "user"]
    assert asked.turns[1]["content"] == "ab"
    said = asked.sampling
    assert (said.max_new_tokens, said.temperature, said.top_p) == (5, 1.0, 0.9)
    assert (said.seed, said.stop, asked.streams, asked.tells_usage) == (7, ("\n",), True, True)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}] * 1025}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "root", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        ({"model": "other"}, "model"),
        ({"model": 3}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 3.0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
        ({"max_completion_tokens": "3"}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a" * 257]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": {}}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"more": 1}}, "stream_options"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"prompt": "a"}, "prompt"),
        ({"x" * 500: 1}, "x" * 100),
    ],
)
def test_what_is_wrong_is_named(changes, param) -> None:
    with pytest.raises(RequestError) as caught:
        chat_request({**ASK, **changes}, BOUNDS)
    assert caught.value.param == param
    told = caught.value.body["error"]
    assert told["type"] == "invalid_request_error" and told["message"] and len(str(told)) < 600


@pytest.mark.parametrize("prompt", [None, "", 3, [], ["a", "b"], [[1, 2]], [3]])
def test_a_completion_has_one_text(prompt) -> None:
    with pytest.raises(RequestError, match="one text"):
        completion_request({"prompt": prompt}, BOUNDS)
    assert completion_request({"prompt": ["a"]}, BOUNDS).prompt == "a"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'"a"',
        b"\xff",
        b'{"temperature": NaN}',
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b'{"\\ud800": 1}',
        b'{"prompt": ["a\\udfff"]}',
    ],
)
def test_a_body_that_is_no_object_is_refused(body) -> None:
    with pytest.raises(RequestError, match="JSON"):
        parse_object(body)


def test_null_is_as_if_it_were_not_there() -> None:
    assert parse_object(json.dumps({**ASK, "stop": None}).encode()) == ASK
