import socket
import threading
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from pretended_service import begun, greeted

from flower_split.apps.silo_service import caller, frames, greeting
from flower_split.apps.silo_service.caller import NotHandedError, ask_status, hand_over
from flower_split.apps.silo_service.flower_messages import done_of
from flower_split.apps.silo_service.socket_folder import SOCKET
from flower_split.errors import ServiceError
from flower_split.proto.silo_pb2 import Answer, Failed, Greeting, Refused, Request, Working


def replied(message, context):
    """A reply that says what came, and a state that says so too."""
    content = RecordDict({"metrics": MetricRecord({"num-examples": 3, "loss": 0.25})})
    content["arrays"] = ArrayRecord({"a": Array(np.arange(6, dtype=np.float32).reshape(2, 3))})
    context.state["seen"] = ConfigRecord({"round": message.content["config"]["server-round"]})
    return Message(content, reply_to=message)


def test_reply_and_state_come_back(serving, folder, make_message):
    message, context = make_message()
    with serving(replied):
        reply = hand_over(message, context, folder)
    here = replied(*make_message())
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert reply.metadata.dst_node_id == message.metadata.src_node_id
    assert reply.content["metrics"] == here.content["metrics"]
    assert reply.content["arrays"]["a"].data == here.content["arrays"]["a"].data
    assert context.state["seen"]["round"] == 1


def test_the_service_has_the_message_and_the_context_that_flower_brought(
    serving, folder, make_message
):
    seen = []

    def handle(message, context):
        seen.append((message, context))
        return replied(message, context)

    message, context = make_message(rate=0.5, key=b"\x00\xff")
    context.state["kept"] = ConfigRecord({"value": [1, 2]})
    with serving(handle):
        hand_over(message, context, folder)
    ((got, around),) = seen
    assert got.content == message.content
    assert got.metadata.message_id == message.metadata.message_id
    assert got.metadata.ttl == message.metadata.ttl
    assert around.run_config == context.run_config and around.node_config == context.node_config
    assert (around.run_id, around.node_id) == (context.run_id, context.node_id)
    assert around.state["kept"] == context.state["kept"]


def test_an_error_reply_comes_back_as_it_is(serving, folder, make_message):
    with serving(lambda message, context: Message(Error(2, "no data"), reply_to=message)):
        reply = hand_over(*make_message(), folder)
    assert reply.error.reason == "no data"


def test_a_foreign_error_leaves_the_service_without_its_text(serving, folder, make_message):
    def fail(message, context):
        raise KeyError("a user's text")

    with serving(fail), pytest.raises(ServiceError, match="KeyError") as raised:
        hand_over(*make_message(), folder)
    assert not isinstance(raised.value, NotHandedError)
    assert "user's text" not in str(raised.value)


def no_service(folder):
    folder.chmod(0o700)


def stale(folder):
    folder.chmod(0o700)
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(folder / SOCKET))
    left.close()


def shared(folder):
    folder.chmod(0o755)


def no_socket(folder):
    folder.chmod(0o700)
    (folder / SOCKET).write_text("")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_service, "no silo service is running at .*: start flower-split silo serve"),
        (stale, "no silo service is running"),
        (shared, "chmod 700"),
        (no_socket, "is no socket: remove it"),
    ],
)
def test_without_a_service_nothing_was_done(folder, make_message, make, said):
    make(folder)
    with pytest.raises(NotHandedError, match=said):
        hand_over(*make_message(), folder)


def test_a_folder_that_is_not_there_and_a_path_that_is_too_long(folder, make_message):
    with pytest.raises(NotHandedError, match="no silo service is running"):
        hand_over(*make_message(), folder / "not-there")
    with pytest.raises(NotHandedError, match="longer than the 107 bytes"):
        hand_over(*make_message(), folder / ("x" * 120))


def another_version(found):
    found.versions["peft"] = "0.0.1"


def another_protocol(found):
    found.protocol = 99


def another_environment(found):
    found.environment["OMP_NUM_THREADS"] = "77"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_version, "it has peft 0.0.1, and this process .*again after an upgrade"),
        (another_protocol, "version 99 of the silo service's protocol"),
        (another_environment, "OMP_NUM_THREADS=77"),
    ],
)
def test_a_service_that_would_compute_otherwise_is_given_nothing(
    pretend, folder, make_message, change, said
):
    asked = []

    def act(connection):
        frames.receive(connection, Request, seconds=30.0)
        own = greeting.greeting()
        change(own)
        frames.send(connection, Answer(greeting=own), seconds=30.0)
        asked.append(connection.recv(1))

    with pretend(act), pytest.raises(NotHandedError, match=said):
        hand_over(*make_message(), folder)
    assert asked == [b""]


def silent(connection):
    connection.recv(1 << 16)
    connection.recv(1)


def nonsense(connection):
    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    connection.recv(1 << 16)


def refusing(connection):
    greeted(connection)
    frames.send(connection, Answer(refused=Refused(reason="it is busy")), seconds=30.0)


def dying(connection):
    greeted(connection)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (silent, "no whole message came in 0.5 s"),
        (nonsense, "a frame of .* bytes came"),
        (refusing, "it is busy"),
        (dying, "has closed the connection"),
    ],
)
def test_what_fails_before_the_word_to_begin_can_be_done_elsewhere(
    pretend, folder, make_message, act, said
):
    with pretend(act), pytest.raises(NotHandedError, match=said):
        hand_over(*make_message(), folder, turn_seconds=0.5 if act is silent else 60.0)


def ended(connection):
    begun(connection)


def hanging(connection):
    begun(connection)
    connection.recv(1)


def failed(connection):
    begun(connection)
    frames.send(connection, Answer(working=Working()), seconds=30.0)
    frames.send(connection, Answer(failed=Failed(reason="it was stopped")), seconds=30.0)


def garbage(connection):
    begun(connection)
    answer = Answer()
    answer.done.reply = b"\xff\xff"
    frames.send(connection, answer, seconds=30.0)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (ended, "it ended in the middle of this message"),
        (hanging, "it hangs: it said nothing for 0.5 s"),
        (failed, "it was stopped"),
        (garbage, "no Flower message back"),
    ],
)
def test_what_fails_after_it_is_not_done_twice(pretend, folder, make_message, act, said):
    with pretend(act), pytest.raises(ServiceError, match=said) as raised:
        hand_over(*make_message(), folder, silent_seconds=0.5 if act is hanging else 60.0)
    assert not isinstance(raised.value, NotHandedError)
    assert "not done again" in str(raised.value)


def test_the_reply_to_another_message_is_none(pretend, folder, make_message):
    other = make_message("evaluate")

    def act(connection):
        begun(connection)
        frames.send(connection, Answer(done=done_of(replied(*other), other[1])), seconds=30.0)

    with pretend(act), pytest.raises(ServiceError, match="the reply to another message"):
        hand_over(*make_message(), folder)


def test_a_service_that_works_beyond_the_rounds_end_is_left(
    pretend, folder, make_message, monkeypatch
):
    monkeypatch.setattr(caller, "GRACE_SECONDS", 0.3)
    message, context = make_message(**{"split.seconds": 0.2})
    with pretend(hanging), pytest.raises(ServiceError, match="not ended with the round"):
        hand_over(message, context, folder)


def test_a_message_that_is_too_large_is_not_handed_over(folder, make_message, monkeypatch):
    monkeypatch.setattr(caller, "MOST_BYTES", 10)
    with pytest.raises(NotHandedError, match="more than the 10 bytes"):
        hand_over(*make_message(), folder)


def test_the_status_says_what_is_done(serving, folder, make_message):
    release, working = threading.Event(), threading.Event()

    def handle(message, context):
        working.set()
        assert release.wait(60.0)
        return replied(message, context)

    with serving(handle):
        assert ask_status(folder).work == ""
        caught = []
        asking = threading.Thread(
            target=lambda: caught.append(hand_over(*make_message(), folder)), daemon=True
        )
        asking.start()
        assert working.wait(60.0)
        assert ask_status(folder).work == "train of run 7"
        release.set()
        asking.join(60.0)
        found = ask_status(folder)
    assert len(caught) == 1
    assert (found.done, found.failed, found.work) == (1, 0, "")


def test_the_status_of_a_service_of_another_version_is_none(pretend, folder):
    def act(connection):
        frames.receive(connection, Request, seconds=30.0)
        frames.send(connection, Answer(refused=Refused(reason="start it again")), seconds=30.0)

    with pretend(act), pytest.raises(ServiceError, match="tells no status: start it again"):
        ask_status(folder)


def test_an_empty_greeting_is_of_another_version():
    assert "version 0" in greeting.difference(Greeting(), greeting.greeting())
    assert greeting.difference(greeting.greeting(), greeting.greeting()) == ""


def test_a_service_that_is_not_there_costs_no_time(folder, make_message):
    no_service(folder)
    began = time.monotonic()
    with pytest.raises(NotHandedError):
        hand_over(*make_message(), folder)
    assert time.monotonic() - began < 30.0
