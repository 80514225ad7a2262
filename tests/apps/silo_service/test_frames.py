import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_split.apps.silo_service import frames
from flower_split.errors import FlowerSplitError, WireError
from flower_split.proto.silo_pb2 import Answer, Go, Offer, Request, Working


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_frames_arrive_one_after_the_other(ends):
    ours, theirs = ends
    large = Request(offer=Offer(message=bytes(5 * frames.MIB)))
    sending = threading.Thread(
        target=lambda: [frames.send(ours, one, seconds=60.0) for one in (large, Request(go=Go()))]
    )
    sending.start()
    found = frames.receive(theirs, Request, seconds=60.0, most=frames.MOST_BYTES)
    assert found == large
    assert frames.receive(theirs, Request, seconds=60.0).WhichOneof("body") == "go"
    sending.join(60.0)


def test_more_than_the_bound_is_refused_by_its_length(ends):
    ours, theirs = ends
    theirs.sendall(struct.pack(">I", frames.MOST_SHORT_BYTES + 1))
    with pytest.raises(WireError, match="expected at most"):
        frames.receive(ours, Request, seconds=60.0)


def test_what_is_too_large_is_not_sent(ends, monkeypatch):
    monkeypatch.setattr(frames, "MOST_BYTES", 100)
    with pytest.raises(WireError, match="more than the 100"):
        frames.send(ends[0], Request(offer=Offer(message=bytes(200))), seconds=1.0)


@pytest.mark.parametrize("sent", [b"", b"\x00", struct.pack(">I", 9) + b"short"])
def test_an_end_in_the_middle_is_told(ends, sent):
    ours, theirs = ends
    theirs.sendall(sent)
    theirs.close()
    with pytest.raises(frames.GoneError):
        frames.receive(ours, Request, seconds=60.0)


@pytest.mark.parametrize("sent", [b"", b"\x00\x00", struct.pack(">I", 9) + b"short"])
def test_what_does_not_come_is_not_waited_for(ends, sent):
    ours, theirs = ends
    theirs.sendall(sent)
    with pytest.raises(frames.SilentError, match=r"in 0\.1 s"):
        frames.receive(ours, Request, seconds=0.1)


def test_a_frame_that_nobody_takes_is_not_waited_for(ends):
    with pytest.raises(frames.SilentError, match="took no message"):
        frames.send(ends[0], Request(offer=Offer(message=bytes(8 * frames.MIB))), seconds=0.2)


def test_a_closed_connection_is_seen(ends):
    ours, theirs = ends
    assert not frames.is_gone(ours)
    theirs.close()
    assert frames.is_gone(ours)


def test_what_comes_unasked_is_an_error(ends):
    ours, theirs = ends
    theirs.sendall(b"x")
    with pytest.raises(WireError, match="none was expected"):
        frames.is_gone(ours)


def test_an_empty_frame_is_none(ends):
    ours, theirs = ends
    theirs.sendall(struct.pack(">I", 0))
    with pytest.raises(WireError, match="empty frame"):
        frames.receive(ours, Answer, seconds=60.0)


@given(st.binary(max_size=64))
def test_bytes_of_anyone_are_a_frame_or_an_error_of_ours(content):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack(">I", len(content)) + content)
        try:
            frame = frames.receive(ours, Answer, seconds=60.0)
        except FlowerSplitError:
            return
        assert frame.WhichOneof("body") is not None


def test_a_short_answer_is_short():
    assert Answer(working=Working()).ByteSize() < 16
