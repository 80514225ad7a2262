"""A connection that breaks at any place changes nothing of what a session yields."""

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from affine_backend import AffineBackend, backward, forward, spec
from cut_sessions import MODES, KindsRig
from cut_training import Rig
from cutting_relay import CuttingRelay, Direction, Message, Place
from hosting import eventually, hosting, nothing_left

from flower_split.errors import (
    SequenceError,
    TokenError,
    TrunkBusyError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.server.grpc.service import ServiceLimits
from flower_split.server.tickets import TicketBook
from flower_split.transport.grpc.channel import Keepalive
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import StepRequest

PLACES: tuple[Place, ...] = ("before", "middle", "after")
BRISK = Keepalive(interval=0.5, timeout=0.5)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flower_split.transport.grpc.channel.FIRST", 0.002)


@pytest.fixture
def _persistent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is closed at once may lose all that was under way, many times in a row."""
    monkeypatch.setattr("flower_split.transport.grpc.stream.FUTILE_STREAMS", 100)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    rig = Rig()
    with rig.serving():
        yield rig


class CutOnce:
    """Cuts the first connection at one message."""

    def __init__(self, direction: Direction, number: int, place: Place) -> None:
        self.message = Message(0, direction, number)
        self.place = place
        self.done = False

    def __call__(self, message: Message) -> Place | None:
        if message != self.message:
            return None
        self.done = True
        return self.place


def assert_done(cut: CutOnce, seen: list[int]) -> None:
    """Of the messages `seen` in the undisturbed run the last can be a silo's Leave, which is sent
    where the trunk has not ended the stream before it."""
    assert cut.done or (cut.message.direction, cut.message.number) == ("up", seen[-1])


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("codec", ["fp32", "int8"])
@pytest.mark.medium
@pytest.mark.usefixtures("_persistent")
def test_connections_that_last_for_a_few_messages(rig: Rig, codec: str) -> None:
    expected, relay = rig.trained(codec=codec)
    assert relay.connections == 1 and expected.reconnects == 0
    for lasts in (3, 5):

        def cut(message: Message, lasts: int = lasts) -> Place | None:
            if message.number < lasts:
                return None
            return PLACES[message.connection % len(PLACES)]

        found, relay = rig.trained(cut, codec)
        found.assert_equals(expected)
        assert relay.connections > 5 and found.reconnects > 4


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("place", PLACES[1:])  # before one is after another, but for the handshake
@pytest.mark.medium
def test_a_cut_at_every_message_of_a_training(rig: Rig, direction: Direction, place: Place) -> None:
    shape = {"steps": 1, "in_flight": 2}
    expected, relay = rig.trained(**shape)
    numbers = [message.number for message in relay.seen if message.direction == direction]
    assert numbers[0] == 0 and len(numbers) > 10  # the hello or the welcome among them
    for number in numbers:
        cut = CutOnce(direction, number, place)
        found, relay = rig.trained(cut, **shape)
        found.assert_equals(expected)
        assert_done(cut, numbers)


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.medium
@pytest.mark.usefixtures("_persistent")
def test_sessions_of_every_kind_over_connections_that_break(mode: str) -> None:
    """Caches and their edits, adapter calls, prefixes and evaluations are made once, too."""
    with KindsRig(mode).serving() as rig:
        for purpose, codec in (("train", "fp32"), ("train", "nf4"), ("evaluate", "int8")):
            expected = rig.session(purpose, codec)  # type: ignore[arg-type]
            chance = random.Random(f"{mode} {purpose} {codec}")

            def cut(message: Message, chance: random.Random = chance) -> Place | None:
                return (
                    chance.choice(PLACES) if message.number > 3 and chance.random() < 0.2 else None
                )

            found = rig.session(purpose, codec, cut)  # type: ignore[arg-type]
            found.assert_equals(expected)
            assert expected.reconnects == 0 and (found.reconnects or purpose == "evaluate")


def affine(relay: CuttingRelay) -> list[Any]:
    """What a session yields whose requests and replies take several frames."""
    shape = 4, 96, 1024  # 1.5 MiB
    with GrpcTransport(relay.address, spec()) as transport:
        answers: list[Any] = [transport.forward(forward(number, *shape)) for number in range(2)]
        answers += [transport.backward(backward(number, *shape)) for number in range(2)]
        results = [answer.result(30) for answer in answers]
        results.append(transport.step(StepRequest(step=0, learning_rate=0.5)).result(30))
        return [*results, transport.finish(), transport.wire_bytes]


@pytest.mark.exhaustive
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cut_within_requests_and_replies_of_several_frames(direction: Direction) -> None:
    backend = AffineBackend()
    with hosting(backend) as server:
        with CuttingRelay(server.address) as relay:
            expected = affine(relay)
        numbers = [message.number for message in relay.seen if message.direction == direction]
        assert len(numbers) >= 11
        for number in numbers:
            for place in PLACES[:2]:
                backend.events.clear()
                cut = CutOnce(direction, number, place)
                with CuttingRelay(server.address, cut) as relay:
                    found = affine(relay)
                assert_done(cut, numbers)
                assert len(found) == len(expected)
                for mine, theirs in zip(found, expected, strict=True):
                    same = torch.equal if isinstance(mine, torch.Tensor) else type(mine).__eq__
                    assert same(mine, theirs)
                assert [name for name, _ in backend.events if name != "close"] == [
                    *("open", "forward", "forward", "backward", "backward", "step", "finish")
                ]


def test_a_step_whose_answer_was_lost_is_made_once() -> None:
    backend = AffineBackend()
    cut = CutOnce("down", 1, "before")
    with (
        hosting(backend) as server,
        CuttingRelay(server.address, cut) as relay,
        GrpcTransport(relay.address, spec()) as transport,
    ):
        step = StepRequest(step=0, learning_rate=0.5, norms_before=(2.0,))
        assert transport.step(step).result(20).norms == (0.5, 2.0)
        assert transport.reconnects == 1 and backend.count("step") == 1
        transport.step(StepRequest(step=1, learning_rate=0.5)).result(20)
        assert transport.finish().steps == 2


@pytest.mark.parametrize("place", PLACES)
def test_a_finish_whose_summary_was_lost_counts_once(place: Place) -> None:
    backend = AffineBackend()
    cut = CutOnce("down", 2, place)
    with hosting(backend) as server, CuttingRelay(server.address, cut) as relay:
        with GrpcTransport(relay.address, spec()) as transport:
            transport.forward(forward(0)).result(20)
            assert transport.finish().forwards == 1
        assert eventually(lambda: server.num_sessions == 0)
        assert (backend.count("finish"), backend.count("close")) == (1, 1)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("place", PLACES)
def test_a_ticket_opens_its_session_over_a_broken_handshake(
    direction: Direction, place: Place
) -> None:
    backend, book = AffineBackend(), TicketBook()
    cut = CutOnce(direction, 0, place)
    with (
        hosting(backend, admit=book) as server,
        CuttingRelay(server.address, cut) as relay,
        GrpcTransport(relay.address, spec(), book.issue(1, 2, 3, "train")) as transport,
    ):
        assert transport.forward(forward(0)).result(20).shape == (2, 4, 8)
        assert backend.count("open") == 1 and cut.done


def test_callers_wait_and_idle_silos_keep_their_session() -> None:
    """Nothing is asked for as the connection breaks."""
    backend = AffineBackend()
    with hosting(backend) as server, CuttingRelay(server.address) as relay:
        with GrpcTransport(relay.address, spec()) as transport:
            transport.forward(forward(0)).result(20)
            for expected in (1, 2, 3):
                relay.cut_all()
                assert eventually(lambda n=expected: transport.reconnects == n)  # type: ignore[misc]
            assert transport.backward(backward(0)).result(20) is not None
            assert transport.finish().backwards == 1
        assert backend.count("open") == 1


@pytest.mark.medium
def test_a_silo_goes_on_before_the_trunk_knows_that_the_connection_is_dead() -> None:
    def cut(message: Message) -> Place | None:
        return "freeze" if message == Message(0, "up", 2) else None

    backend = AffineBackend()
    with (
        hosting(backend, keepalive=Keepalive(interval=600.0, timeout=600.0)) as server,
        CuttingRelay(server.address, cut) as relay,
        GrpcTransport(relay.address, spec(), keepalive=BRISK) as transport,
    ):
        transport.forward(forward(0)).result(20)
        assert transport.backward(backward(0)).result(20) is not None
        assert (transport.reconnects, server.num_sessions) == (1, 1)
        assert transport.finish().backwards == 1
        assert backend.count("open") == 1


def test_a_session_that_is_held_too_long_is_lost_and_said_so() -> None:
    backend = AffineBackend()
    limits = ServiceLimits(reconnect_timeout=0.3)
    with (
        nothing_left(),
        hosting(backend, limits=limits) as server,
        CuttingRelay(server.address) as relay,
        GrpcTransport(relay.address, spec()) as transport,
    ):
        transport.forward(forward(0)).result(20)
        relay.refuse(True)
        assert eventually(lambda: backend.count("close") == 1, 5)
        assert server.num_sessions == 0
        waiting = transport.backward(backward(0))
        relay.refuse(False)
        with pytest.raises(TrunkUnavailableError, match="the session is lost: the trunk was"):
            waiting.result(20)
        with pytest.raises(TrunkUnavailableError, match="the session is lost"):
            transport.finish()


def test_a_trunk_that_was_restarted_has_lost_the_session() -> None:
    with (
        hosting(AffineBackend()) as server,
        CuttingRelay(server.address) as relay,
        GrpcTransport(relay.address, spec()) as transport,
    ):
        transport.forward(forward(0)).result(20)
        other = AffineBackend()
        with hosting(other) as restarted:
            relay.lead_to(restarted.address)
            relay.cut_all()
            with pytest.raises(TrunkUnavailableError, match="the session is lost: the trunk was"):
                transport.backward(backward(0)).result(20)
        assert other.events == []


@pytest.mark.medium
def test_a_trunk_that_stays_away_is_given_up_in_time() -> None:
    limits = ServiceLimits(reconnect_timeout=1.0)
    with (
        nothing_left(),
        hosting(AffineBackend(), limits=limits) as server,
        CuttingRelay(server.address) as relay,
        GrpcTransport(relay.address, spec(), keepalive=BRISK) as transport,
    ):
        transport.forward(forward(0)).result(20)
        began = time.monotonic()
        relay.refuse(True)
        expected = "UNAVAILABLE: .*; reconnecting was tried for 2 s"
        with pytest.raises(TrunkUnavailableError, match=expected):
            transport.backward(backward(0)).result(20)
        assert 1.9 < time.monotonic() - began < 10


def test_a_connection_over_which_nothing_gets_is_given_up() -> None:
    """As on a link that is so slow that pings time out behind what is sent."""

    def cut(message: Message) -> Place | None:
        return "middle" if (message.direction, message.number) == ("up", 1) else None

    with (
        hosting(AffineBackend()) as server,
        CuttingRelay(server.address, cut) as relay,
        GrpcTransport(relay.address, spec()) as transport,
    ):
        expected = "UNAVAILABLE: .*; the connection broke 5 times before anything got through"
        with pytest.raises(TrunkUnavailableError, match=expected):
            transport.forward(forward(0)).result(20)
        assert transport.reconnects == 6


def test_reconnecting_can_be_turned_off() -> None:
    backend = AffineBackend()
    limits = ServiceLimits(reconnect_timeout=0.0)
    with (
        hosting(backend, limits=limits) as server,
        CuttingRelay(server.address) as relay,
        GrpcTransport(relay.address, spec()) as transport,
    ):
        transport.forward(forward(0)).result(20)
        relay.cut_all()
        with pytest.raises(TrunkUnavailableError) as caught:
            transport.backward(backward(0)).result(20)
        assert "reconnecting" not in str(caught.value)
        assert eventually(lambda: backend.count("close") == 1)


@pytest.mark.parametrize("fault", [SequenceError, TrunkBusyError, RuntimeError])
def test_what_the_trunk_states_is_no_broken_connection(fault: type[Exception]) -> None:
    backend = AffineBackend()
    with hosting(backend) as server, CuttingRelay(server.address) as relay:
        with GrpcTransport(relay.address, spec()) as transport:

            def fail(name: str) -> None:
                if name == "forward":
                    raise fault("no")

            backend.trouble = fail
            assert transport.forward(forward(0)).exception(20) is not None
            assert transport.reconnects == 0
        assert relay.connections == 1


def test_a_fault_whose_status_was_lost_is_told_again() -> None:
    backend = AffineBackend()
    with (
        hosting(backend) as server,
        CuttingRelay(server.address) as relay,
        GrpcTransport(relay.address, spec()) as transport,
    ):
        transport.forward(forward(0)).result(20)

        def fail(name: str) -> None:
            if name == "backward":
                relay.refuse(True)
                raise SequenceError("out of order")

        backend.trouble = fail
        waiting = transport.backward(backward(0))
        assert eventually(lambda: backend.count("close") == 1)
        relay.refuse(False)
        with pytest.raises(SequenceError, match="out of order"):
            waiting.result(20)


def test_what_a_silo_cannot_send_ends_its_session_at_once() -> None:
    backend = AffineBackend()
    with hosting(backend) as server, CuttingRelay(server.address) as relay:
        with GrpcTransport(relay.address, spec()) as transport:
            with pytest.raises(WireError):
                transport.forward(forward(0, hidden=torch.zeros(3, 8))).result(20)
            assert eventually(lambda: backend.count("close") == 1, 3)
        assert relay.connections == 1


def test_a_silo_that_leaves_frees_its_seat_at_once() -> None:
    backend = AffineBackend()
    with hosting(backend, limits=ServiceLimits(reconnect_timeout=600.0)) as server:
        with GrpcTransport(server.address, spec()) as transport:
            transport.forward(forward(0)).result(20)
        assert eventually(lambda: server.num_sessions == 0, 3)
        assert backend.count("close") == 1


@pytest.mark.medium
def test_a_held_session_has_its_seat_and_its_ticket() -> None:
    backend, book = AffineBackend(), TicketBook()
    limits = ServiceLimits(max_sessions=1, reconnect_timeout=600.0)
    ticket = book.issue(1, 2, 3, "train")
    with (
        hosting(backend, admit=book, limits=limits) as server,
        CuttingRelay(server.address) as relay,
        GrpcTransport(relay.address, spec(), ticket) as transport,
    ):
        transport.forward(forward(0)).result(20)
        relay.refuse(True)
        assert server.num_sessions == 1
        with pytest.raises(TrunkBusyError):
            GrpcTransport(server.address, spec(), book.issue(1, 4, 3, "train"))
        with pytest.raises(TokenError):
            GrpcTransport(server.address, spec(), ticket)
        book.revoke(ticket)
        assert eventually(lambda: server.num_sessions == 0, 5)
        relay.refuse(False)
        with pytest.raises(TokenError, match="expired"):
            transport.backward(backward(0)).result(20)


def test_a_server_that_stops_does_not_wait_for_silos_to_reconnect() -> None:
    backend = AffineBackend()
    limits = ServiceLimits(reconnect_timeout=600.0)
    with CuttingRelay("127.0.0.1:1") as relay, hosting(backend, limits=limits) as server:
        relay.lead_to(server.address)
        with GrpcTransport(relay.address, spec()) as transport:
            relay.refuse(True)
            stopped = threading.Thread(target=server.stop)
            stopped.start()
            stopped.join(10)
            assert not stopped.is_alive() and backend.count("close") == 1
            transport.close()
