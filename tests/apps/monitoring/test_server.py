"""The page's server: what it answers to whom, and that nothing can be changed through it."""

import asyncio
import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient

from flower_split.apps.monitoring import server as serving
from flower_split.apps.monitoring.access import Access
from flower_split.apps.monitoring.server import MonitorServer
from flower_split.apps.monitoring.watched_run import WatchedRun

TOKEN = "a-token-of-some-length"
WAYS = ("/", "/stream", "/live.js", "/style.css")


def client(run, token="", **options):
    app = MonitorServer(WatchedRun(run), Access(token)).app
    return TestClient(app, base_url="http://localhost:8765", **options)


def test_the_page_has_the_run_before_any_script_runs(run, log):
    page = client(run).get("/")
    assert page.status_code == 200 and "tiny-model" in page.text and "3.25" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "http://" not in page.text and "https://" not in page.text
    for way, kind in (("/live.js", "text/javascript"), ("/style.css", "text/css")):
        assert client(run).get(way).headers["content-type"].startswith(kind)


def test_nothing_but_looking_is_served(run, log):
    for way in (*WAYS, "/health"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert client(run).request(method, way).status_code == 405
    for way in ("/events.jsonl", "/../events.jsonl", "/result.json", "/docs"):
        assert client(run).get(way).status_code == 404


def test_without_the_token_nothing_is_told(run, log):
    reader = client(run, TOKEN)
    for way in WAYS:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"cookie": "flower-split-monitor=x"},
        ):
            answer = reader.get(way, headers=headers)
            assert answer.status_code == 403 and "needs the token" in answer.text
            assert "tiny-model" not in answer.text
    assert reader.get("/", params={"token": "wrong"}).status_code == 403
    assert reader.get("/health").text == "ok\n"


def test_a_token_in_the_address_becomes_a_cookie(run, log):
    reader = client(run, TOKEN, follow_redirects=False)
    back = reader.get("/", params={"token": TOKEN})
    assert back.status_code == 303 and back.headers["location"] == "/"
    told = back.headers["set-cookie"].lower()
    assert "httponly" in told and "samesite=strict" in told
    assert reader.get("/").status_code == 200
    assert client(run, TOKEN).get("/", headers={"authorization": f"Bearer {TOKEN}"}).is_success


def test_without_a_token_what_an_address_brings_is_not_kept(run, log):
    reader = client(run, follow_redirects=False)
    back = reader.get("/", params={"token": "\N{GRINNING FACE}"})
    assert back.status_code == 303 and "set-cookie" not in back.headers


def test_a_site_whose_name_leads_to_loopback_is_refused(run, log):
    assert client(run).get("/", headers={"host": "evil.example:8765"}).status_code == 403


def test_a_stream_begins_with_everything_and_goes_on_with_what_changed(run, log, loss):
    async def first_two():
        watched = MonitorServer(WatchedRun(run), Access(), pause=0.01)
        told = watched.told()
        found = []
        try:
            while len(found) < 2:
                line = await anext(told)
                if line.startswith("event: parts"):
                    found.append(json.loads(line.partition("data: ")[2]))
                    if len(found) == 1:
                        loss(log, "south", 1, 2.5)
        finally:
            await told.aclose()
        return found

    whole, changed = asyncio.run(asyncio.wait_for(first_two(), 60))
    assert whole.keys() == set(serving.PARTS)
    assert len(changed) < len(serving.PARTS)


def test_readers_without_end_are_refused(run, log, monkeypatch):
    monkeypatch.setattr(serving, "MOST_READERS", 0)
    answer = client(run).get("/stream")
    assert answer.status_code == 503 and "Too many pages" in answer.text
