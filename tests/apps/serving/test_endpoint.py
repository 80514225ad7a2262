"""The endpoint as a client meets it: OpenAI's replies, streams, refusals, and bounds."""

import json
import threading

import httpx
import pytest
from tuned import ScriptedModel, save_tuned_run, stock_text

from flower_split.apps.serving.endpoint import MOST_BYTES
from flower_split.apps.using.tuned_model import open_tuned
from flower_split.apps.using.tuned_run import tuned_run
from flower_split.errors import PromptError, TrunkUnavailableError

pytestmark = pytest.mark.medium

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK = {"messages": [{"role": "user", "content": "the sum"}]}


def events(reply) -> list:
    lines = [line for line in reply.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    found = [line.removeprefix("data: ") for line in lines]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


def test_a_chat_is_answered(said) -> None:
    reply = said.post(CHAT, json=ASK)
    told = reply.json()
    assert reply.status_code == 200 and told["object"] == "chat.completion"
    assert told["choices"][0]["message"] == {"role": "assistant", "content": "one two"}
    assert told["choices"][0]["finish_reason"] == "stop" and told["model"] == "mine"
    assert told["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def test_a_text_goes_on(said) -> None:
    told = said.post(TEXT, json={"prompt": "the"}).json()
    assert told["object"] == "text_completion" and told["choices"][0]["text"] == "one two"


def test_a_chat_is_streamed(said) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    reply = said.post(CHAT, json={**ASK, **options})
    assert reply.headers["content-type"].startswith("text/event-stream")
    first, *middle, last, usage, done = events(reply)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["choices"][0]["delta"]["content"] for one in middle) == "one two"
    assert last["choices"][0] | {"delta": {}} == last["choices"][0]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 3 and done == "[DONE]"
    assert len({one["id"] for one in (first, *middle, last, usage)}) == 1


def test_a_text_is_streamed(said) -> None:
    *pieces, done = events(said.post(TEXT, json={"prompt": "the", "stream": True}))
    assert "".join(one["choices"][0]["text"] for one in pieces) == "one two" and done == "[DONE]"


def test_the_model_is_listed(said) -> None:
    assert [one["id"] for one in said.get("/v1/models").json()["data"]] == ["mine"]
    assert said.get("/v1/models/mine").json()["id"] == "mine"
    assert said.get("/v1/models/other").status_code == 404
    assert said.get("/health").json() == {"status": "ok"}


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"url": CHAT, "content": b"{", "headers": JSON}, 400),
        ({"url": CHAT, "content": b"{}", "headers": JSON}, 400),
        ({"url": CHAT, "content": b"{}", "headers": {"content-type": "text/plain"}}, 415),
        ({"url": CHAT, "content": b"{}"}, 415),
        ({"url": CHAT, "content": b" " * (MOST_BYTES + 1), "headers": JSON}, 413),
        ({"url": CHAT, "content": iter([b" " * MOST_BYTES, b"{}"]), "headers": JSON}, 413),
        ({"url": CHAT, "json": {**ASK, "model": "other"}}, 404),
        ({"url": CHAT, "json": {**ASK, "max_tokens": 65}}, 400),
        ({"url": TEXT, "json": ASK}, 400),
        ({"url": "/v1/embeddings", "json": {}}, 404),
        ({"url": CHAT, "method": "GET"}, 405),
        ({"url": CHAT, "json": ASK, "headers": {"host": "evil.example:80"}}, 403),
        ({"url": CHAT, "json": ASK, "headers": {"host": "127.0.0.1.evil.example"}}, 403),
    ],
)
def test_what_is_wrong_is_answered_in_openais_form(said, request_, status) -> None:
    reply = said.request(**{"method": "POST", **request_})
    assert reply.status_code == status
    told = reply.json()["error"]
    assert told["message"] and set(told) == {"message", "type", "param", "code"}
    assert said.post(CHAT, json=ASK).status_code == 200


def test_a_key_is_asked_for(serving) -> None:
    key = "k" * 32
    with serving(ScriptedModel(["one"]), api_key=key) as client:
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": key}):
            for path in ("/v1/models", "/health"):
                reply = client.get(path, headers=given)
                assert reply.status_code == 401
                assert reply.json()["error"]["code"] == "invalid_api_key"
            assert client.post(CHAT, content=b"{", headers=given).status_code == 401
        good = {"authorization": f"Bearer {key}", "host": "models.example.org"}
        assert client.post(CHAT, json=ASK, headers=good).status_code == 200


class Gate:
    """Holds a model back before its words, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, number: int) -> None:
        self.reached.set()
        assert self.opened.wait(100)


def test_one_is_answered_at_a_time_and_a_few_wait(serving) -> None:
    gate = Gate()
    model = ScriptedModel(["one"], gate)
    with serving(model, waiting=1) as client:
        replies = []

        def ask() -> None:
            replies.append(client.post(CHAT, json=ASK).status_code)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        while len(replies) < 4:
            threading.Event().wait(0.05)
        # Those that are refused are answered while the gate is shut.
        assert replies == [429] * 4 and len(model.asked) == 1
        gate.opened.set()
        for thread in threads:
            thread.join()
        assert sorted(replies) == [200, 200, 429, 429, 429, 429] and len(model.asked) == 2
        refused = client.post(CHAT, json=ASK)
        assert refused.status_code == 200


@pytest.mark.parametrize("streams", [True, False])
def test_who_is_gone_is_not_answered_any_further(serving, streams) -> None:
    gone, gate = threading.Event(), threading.Event()

    def before(number: int) -> None:
        if number == 1:
            gate.set()
            gone.wait(100)
        if number > 1:
            threading.Event().wait(0.02)

    model = ScriptedModel(["word "] * 3000, before)
    with serving(model) as client:
        body = {**ASK, "stream": streams}
        with httpx.Client(base_url=client.base_url, timeout=100, trust_env=False) as other:
            if streams:
                with other.stream("POST", CHAT, json=body) as reply:
                    next(reply.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    other.post(CHAT, json=body, timeout=httpx.Timeout(100, read=0.5))
        model.words = ["end"]
        gone.set()
        model_after = client.post(CHAT, json=ASK)
        assert model.finished[0] == "interrupted"
        assert model_after.status_code == 200


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PromptError("the context is full"), 400),
        (TrunkUnavailableError("the trunk is gone"), 503),
        (RuntimeError("with the words of a user"), 500),
    ],
)
def test_a_model_that_fails_is_told(serving, error, status) -> None:
    def fail(number: int) -> None:
        raise error

    with serving(ScriptedModel(["one"], fail)) as client:
        for streams in (False, True):
            reply = client.post(CHAT, json={**ASK, "stream": streams})
            assert reply.status_code == status
            assert ("user" in reply.text) is False and reply.json()["error"]["message"]


def test_a_stream_that_fails_in_its_midst_says_so(serving) -> None:
    def fail(number: int) -> None:
        if number:
            raise TrunkUnavailableError("the trunk is gone")

    with serving(ScriptedModel(["one", "two"], fail)) as client:
        *_, last = events(client.post(CHAT, json={**ASK, "stream": True}))
        assert last["error"]["message"] == "the trunk is gone"


def test_a_tuned_model_says_what_stock_peft_says(serving, tmp_path) -> None:
    folder = save_tuned_run(tmp_path, **{"data.prompt": "question"})
    with tuned_run(folder) as run, open_tuned(run) as model:
        ids = model.form.ids(ASK["messages"])
        with serving(model) as client:
            chat = client.post(CHAT, json={**ASK, "max_tokens": 8}).json()
            text = client.post(TEXT, json={"prompt": "the sum", "max_tokens": 8}).json()
            turns = [*ASK["messages"], {"role": "assistant", "content": "a"}, *ASK["messages"]]
            refused = client.post(CHAT, json={"messages": turns})
            full = client.post(TEXT, json={"prompt": "the " * 300})
    said = stock_text(folder, ids, max_new_tokens=8)
    assert chat["choices"][0]["message"]["content"] == said
    assert text["choices"][0]["text"] == " " + said
    assert refused.status_code == 400 and "no place" in refused.json()["error"]["message"]
    assert full.status_code == 400 and "context" in full.json()["error"]["message"]
