"""Harness of the silo service's socket: frames, and the Flower messages in them."""

import socket
import struct

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from fuzz_choices import Choices

from flower_split.apps.silo_service import frames
from flower_split.apps.silo_service.flower_messages import offer_of, read_done, read_offer
from flower_split.apps.silo_service.greeting import greeting
from flower_split.errors import FlowerSplitError
from flower_split.proto.silo_pb2 import Answer, Done, Go, Request, Working

_MOST = 2048
"""Bytes of an input's frame."""


def silo_service(data: bytes) -> None:
    """A frame of either end, with a length that may lie, and what is in it."""
    choices = Choices(data)
    kind = choices.of((Request, Answer))
    size = choices.number() if choices.yes() else None
    content = choices.rest()[:_MOST]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        announced = len(content) if size is None else abs(size) % (1 << 32)
        theirs.sendall(struct.pack(">I", announced) + content)
        theirs.close()
        try:
            frame = frames.receive(ours, kind, seconds=20.0, most=_MOST)
            match frame.WhichOneof("body"):
                case "offer":
                    read_offer(frame.offer)
                case "done":
                    read_done(frame.done)
        except FlowerSplitError as error:
            assert len(str(error)) < 600


def _seeds() -> list[bytes]:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    message = Message(RecordDict(), 5, "train")
    offer = offer_of(message, Context(1, 5, {"silo": "a"}, RecordDict(), {"model.name": "m"}))
    asked = [Request(greeting=greeting()), Request(offer=offer), Request(go=Go())]
    told = [Answer(working=Working()), Answer(done=Done(reply=offer.message))]
    return [
        *(bytes([0, 0]) + one.SerializeToString() for one in asked),
        *(bytes([1, 0]) + one.SerializeToString() for one in told),
    ]


HARNESSES = {"silo-service": silo_service}
SEEDS = {"silo-service": _seeds}
