import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
from flwr.app import Error, Message, RecordDict

from flower_split.apps.silo_service import frames, service
from flower_split.apps.silo_service.caller import NotHandedError, ask_status, hand_over
from flower_split.apps.silo_service.flower_messages import offer_of
from flower_split.apps.silo_service.greeting import greeting
from flower_split.apps.silo_service.socket_folder import SOCKET, connected
from flower_split.errors import ServiceError
from flower_split.proto.silo_pb2 import Answer, Go, Offer, Request


def answer(message, context):
    return Message(RecordDict(), reply_to=message)


class Waiting:
    """A handler that begins, and then waits to be let go."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self, message, context):
        self.calls += 1
        self.begun.set()
        assert self.go.wait(60.0)
        return answer(message, context)


class Handing(threading.Thread):
    """Hands a message over in a thread; `join` it, then it has `reply` or `error`."""

    def __init__(self, message, context, folder):
        super().__init__(daemon=True)
        self.arguments = message, context, folder
        self.reply = self.error = None
        self.start()

    def run(self):
        try:
            self.reply = hand_over(*self.arguments)
        except ServiceError as error:
            self.error = error


def wait_until(true, what):
    end = time.monotonic() + 60.0
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def test_one_message_after_the_other_in_the_thread_that_runs_it(serving, folder, make_message):
    threads = set()

    def handle(message, context):
        threads.add(threading.current_thread())
        return answer(message, context)

    with serving(handle):
        for _ in range(3):
            assert hand_over(*make_message(), folder).has_content()
    assert len(threads) == 1


def test_a_message_waits_for_its_turn(serving, folder, make_message):
    handle = Waiting()
    with serving(handle, turn_seconds=60.0):
        first = Handing(*make_message(), folder)
        assert handle.begun.wait(60.0)
        second = Handing(*make_message("evaluate"), folder)
        handle.go.set()
        first.join(60.0)
        second.join(60.0)
    assert first.reply is not None and second.reply is not None
    assert handle.calls == 2


def test_whoever_waits_too_long_does_it_himself(serving, folder, make_message):
    handle = Waiting()
    with serving(handle, turn_seconds=0.1):
        first = Handing(*make_message(), folder)
        assert handle.begun.wait(60.0)
        with pytest.raises(NotHandedError, match="works on another message"):
            hand_over(*make_message(), folder)
        handle.go.set()
        first.join(60.0)
    assert first.reply is not None and handle.calls == 1


def test_a_message_of_another_kind_is_not_taken(serving, folder, make_message):
    with serving(answer), pytest.raises(NotHandedError, match="no message of type 'query'"):
        hand_over(*make_message("query"), folder)


def test_nothing_is_done_before_the_word_to_begin(serving, folder, make_message):
    handle = Waiting()
    with serving(handle):
        with connected(folder, 60.0) as connection:
            frames.send(connection, Request(greeting=greeting()), seconds=60.0)
            frames.receive(connection, Answer, seconds=60.0)
            frames.send(connection, Request(offer=offer_of(*make_message())), seconds=60.0)
            found = frames.receive(connection, Answer, seconds=60.0)
            assert found.WhichOneof("body") == "ready"
        handle.go.set()
        assert hand_over(*make_message("evaluate"), folder).has_content()
    assert handle.calls == 1


def raw(folder, sent):
    """What a client that sends these bytes gets back until the service closes."""
    found = b""
    # The service may close before it has read all.
    with connected(folder, 60.0) as connection, suppress(ConnectionError):
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
            found += part
    return found


def frame(request):
    content = request.SerializeToString()
    return struct.pack(">I", len(content)) + content


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 5) + b"\xff" * 5,
        frame(Request(go=Go())),
        frame(Request(greeting=greeting())) + struct.pack(">I", 0xFFFFFFFF),
        frame(Request(greeting=greeting())) + frame(Request(go=Go())),
        frame(Request(greeting=greeting()))
        + frame(Request(offer=Offer(message=b"\xff\xff", context=b"\xff"))),
        frame(Request(greeting=greeting())) + frame(Request(offer=Offer())),
    ],
)
def test_a_client_that_sends_nonsense_costs_itself_alone(serving, folder, make_message, sent):
    with serving(answer):
        raw(folder, sent)
        assert hand_over(*make_message(), folder).has_content()
        assert ask_status(folder).done == 1


def test_a_client_of_another_protocol_is_told_so(serving, folder):
    other = greeting()
    other.protocol = 99
    with serving(answer):
        said = raw(folder, frame(Request(greeting=other)))
    assert b"start the service again after an upgrade" in said


def test_more_connections_than_it_takes_are_told_so(serving, folder, monkeypatch):
    monkeypatch.setattr(service, "MOST_CONNECTIONS", 1)
    with serving(answer), connected(folder, 60.0) as held:
        frames.send(held, Request(greeting=greeting()), seconds=60.0)
        frames.receive(held, Answer, seconds=60.0)
        with pytest.raises(ServiceError, match="too many connections"):
            ask_status(folder)


def test_after_a_stop_the_message_in_work_is_done_and_no_other(serving, folder, make_message):
    handle = Waiting()
    with serving(handle) as running:
        first = Handing(*make_message(), folder)
        assert handle.begun.wait(60.0)
        running.stop()
        wait_until(lambda: not (folder / SOCKET).exists() or refused(folder), "it listens")
        handle.go.set()
        first.join(60.0)
    assert first.reply is not None and handle.calls == 1
    assert list(folder.iterdir()) == []


def refused(folder):
    try:
        connected(folder, 1.0).close()
    except ServiceError:
        return True
    return False


def test_a_message_that_outlasts_the_stop_is_reported_as_failed(serving, folder, make_message):
    class Interrupting(Waiting):
        def __call__(self, message, context):
            super().__call__(message, context)
            running.interrupting()  # as the signal's handler does
            raise AssertionError("it was not interrupted")

    handle = Interrupting()
    with serving(handle, interrupt=handle.go.set, drain_seconds=0.1) as running:
        first = Handing(*make_message(), folder)
        assert handle.begun.wait(60.0)
        running.stop()
        first.join(60.0)
    assert "it was stopped, and the message did not end in time" in str(first.error)
    assert "not done again" in str(first.error)


@pytest.mark.medium
def test_a_message_that_cannot_be_interrupted_is_reported_before_the_process_is_ended(
    serving, folder, make_message, monkeypatch
):
    monkeypatch.setattr(service, "UNWIND_SECONDS", 0.2)
    handle, given_up = Waiting(), threading.Event()
    with serving(handle, give_up=given_up.set, drain_seconds=0.1) as running:
        first = Handing(*make_message(), folder)
        assert handle.begun.wait(60.0)
        running.stop()
        first.join(60.0)
        assert given_up.wait(60.0)
        handle.go.set()
    assert "it was stopped" in str(first.error)


def test_a_message_whose_clientapp_is_gone_is_ended_and_the_next_one_done(
    serving, folder, make_message
):
    class Interrupting(Waiting):
        def __call__(self, message, context):
            if self.calls:
                return answer(message, context)
            super().__call__(message, context)
            running.interrupting()
            raise AssertionError("it was not interrupted")

    handle = Interrupting()
    with serving(handle, interrupt=handle.go.set, turn_seconds=60.0) as running:
        with connected(folder, 60.0) as connection:
            frames.send(connection, Request(greeting=greeting()), seconds=60.0)
            frames.receive(connection, Answer, seconds=60.0)
            frames.send(connection, Request(offer=offer_of(*make_message())), seconds=60.0)
            frames.receive(connection, Answer, seconds=60.0)
            frames.send(connection, Request(go=Go()), seconds=60.0)
            assert handle.begun.wait(60.0)
        assert hand_over(*make_message(), folder).has_content()
        found = ask_status(folder)
    assert (found.done, found.failed) == (1, 1)


def test_an_interruption_that_comes_late_hits_no_other_message(serving, folder, make_message):
    def handle(message, context):
        running.interrupting()
        return answer(message, context)

    with serving(handle) as running:
        running.interrupting()
        assert hand_over(*make_message(), folder).has_content()


def test_an_idle_service_gives_all_back_once(serving, folder, make_message, nothing_held):
    with serving(answer, holdings=nothing_held, idle_seconds=0.1):
        hand_over(*make_message(), folder)
        assert nothing_held.dropped.wait(60.0)
        assert ask_status(folder).done == 1
        time.sleep(0.3)  # in which it could do so again
    assert nothing_held.drops == 1 and nothing_held.is_empty


def test_a_busy_service_keeps_what_it_has(serving, folder, make_message, nothing_held):
    with serving(answer, holdings=nothing_held, idle_seconds=3600.0):
        hand_over(*make_message(), folder)
        hand_over(*make_message("evaluate"), folder)
    assert nothing_held.drops == 0


def test_after_a_message_that_failed_nothing_is_kept(serving, folder, make_message, nothing_held):
    def fail(message, context):
        return Message(Error(2, "no data"), reply_to=message)

    with serving(fail, holdings=nothing_held, idle_seconds=3600.0):
        assert hand_over(*make_message(), folder).has_error()
        found = ask_status(folder)
    assert nothing_held.drops == 1 and (found.done, found.failed) == (0, 1)
