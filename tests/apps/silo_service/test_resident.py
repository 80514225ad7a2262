import subprocess
import sys
import textwrap

import pytest
from flwr.app import Message, RecordDict
from pretended_service import begun

from flower_split.apps.answering import answering
from flower_split.apps.silo_service.resident import resident


def counted():
    """A handler, and what it was called with."""
    calls = []

    def handle(message, context):
        calls.append(message)
        return Message(RecordDict(), reply_to=message)

    return handle, calls


def test_without_the_key_the_message_is_done_here(make_message):
    handle, calls = counted()
    message, context = make_message()
    assert resident(handle)(message, context).has_content()
    assert calls == [message]


def test_with_a_service_it_is_done_there(serving, folder, make_message):
    here, done_here = counted()
    there, done_there = counted()
    with serving(there):
        assert resident(here)(*make_message(folder=folder)).has_content()
    assert done_here == [] and len(done_there) == 1


def test_without_the_service_it_is_done_here_and_that_is_said(folder, make_message, caplog):
    handle, calls = counted()
    folder.chmod(0o700)
    with caplog.at_level("WARNING", logger="flower_split"):
        assert resident(handle)(*make_message(folder=folder)).has_content()
    assert len(calls) == 1
    assert "does its message itself: no silo service is running" in caplog.text


def test_a_service_that_dies_in_the_middle_costs_the_message_and_it_is_not_done_twice(
    pretend, folder, make_message
):
    handle, calls = counted()

    message, context = make_message(folder=folder)
    with pretend(begun):
        reply = answering(resident(handle))(message, context)
    assert "silo '0': the silo service" in reply.error.reason
    assert "it ended in the middle of this message" in reply.error.reason
    assert calls == []


@pytest.mark.parametrize("value", ["relative/path", "", 7, "/with\0null"])
def test_a_key_that_names_no_folder_is_left_to_the_node_config(make_message, value):
    handle, calls = counted()
    message, context = make_message()
    context.node_config["service-dir"] = value
    resident(handle)(message, context)
    assert len(calls) == 1


THIN = """
    import sys
    from flwr.app import Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    from flower_split.apps.client_app import app
    message = Message(RecordDict(), 5, "train")
    message.metadata.__dict__["_message_id"] = message.object_id
    context = Context(1, 5, {"service-dir": sys.argv[1]}, RecordDict(), {})
    print(app(message, context).has_content())
    print([name for name in ("torch", "transformers", "peft") if name in sys.modules])
"""


@pytest.mark.medium
def test_a_clientapp_that_hands_over_imports_neither_torch_nor_transformers(serving, folder):
    handle, calls = counted()
    with serving(handle):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(THIN), str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout.split("\n")[:2] == ["True", "[]"], done.stdout + done.stderr
    assert len(calls) == 1
