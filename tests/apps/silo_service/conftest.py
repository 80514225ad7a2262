"""A silo service in this process, with handlers of the test's own, and messages for it."""

import shutil
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from in_process_grid import InProcessGrid
from pretended_service import pretending

from flower_split.apps.silo_service.service import Service
from flower_split.apps.silo_service.socket_folder import listening
from flower_split.proto.silo_pb2 import Status


class NothingHeld:
    """In the place of `Holdings`: counts, and has something to give back after each message."""

    def __init__(self):
        self.is_empty = True
        self.drops = 0
        self.dropped = threading.Event()

    def check(self, context):
        pass

    def begin(self, message, context):
        self.is_empty = False

    def drop(self):
        self.is_empty = True
        self.drops += 1
        self.dropped.set()

    def status(self):
        return Status(pid=1)


@pytest.fixture
def folder():
    """A folder whose path is short enough for a socket's."""
    made = Path(tempfile.mkdtemp(prefix="fss-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def nothing_held():
    return NothingHeld()


@pytest.fixture
def serving(folder):
    """Runs a service in a thread for a `with` block, which gets it; `handle` may be by kind."""

    @contextmanager
    def run(handle, *, holdings=None, **settings):
        settings = {"interrupt": lambda: None, "give_up": lambda: None, **settings}
        handlers = handle if isinstance(handle, dict) else {"train": handle, "evaluate": handle}
        with listening(folder) as listener:
            service = Service(listener, handlers, holdings or NothingHeld(), **settings)
            thread = threading.Thread(target=service.run, daemon=True)
            thread.start()
            try:
                yield service
            finally:
                service.stop()
                thread.join(60.0)
                assert not thread.is_alive()

    return run


@pytest.fixture
def make_message():
    """Makes a message as Flower brings it to a ClientApp, and its context."""
    InProcessGrid(None, 0)  # messages take their run and node from the process

    def make(kind="train", folder=None, **fields):
        arrays = ArrayRecord()
        config = ConfigRecord({"server-round": 1, **fields})
        message = Message(RecordDict({"arrays": arrays, "config": config}), 5, kind)
        message.metadata.__dict__["_message_id"] = message.object_id
        node_config = {"partition-id": 0, "num-partitions": 2}
        if folder is not None:
            node_config["service-dir"] = str(folder)
        return message, Context(7, 5, node_config, RecordDict(), {"model.name": "m"})

    return make


@pytest.fixture
def pretend(folder):
    return lambda act: pretending(folder, act)
