"""An endpoint at a port of this machine, asked by plain HTTP."""

import threading
from contextlib import contextmanager

import httpx
import pytest
from tuned import ScriptedModel

from flower_split.apps.serving.endpoint import Endpoint
from flower_split.apps.serving.requests import Bounds
from flower_split.apps.serving.server import listening, server


@contextmanager
def answering(model, **named):
    """A client of a server of `model`, which is stopped again."""
    bounds = Bounds(model="mine", max_new_tokens=64, temperature=0.0)
    with listening("127.0.0.1", 0) as sock:
        running = server(Endpoint(model, bounds, **named))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            address = f"http://127.0.0.1:{sock.getsockname()[1]}"
            with httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
                yield client
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture
def serving():
    return answering


@pytest.fixture
def said():
    """A model of two words, served."""
    model = ScriptedModel(["one ", "two"])
    with answering(model) as client:
        yield client
