"""An attack on the trunk that faults are done to: frames that no silo with manners sends."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc
from raw_silo import RawSilo
from watched_trunk import VICTIM, Fault

from flower_split.proto import trunk_pb2 as pb
from flower_split.transport.grpc.handshake import hello_frame
from flower_split.transport.grpc.requests import encode_request
from flower_split.transport.messages import Request, SessionSpec
from flower_split.transport.rules import HopRules

Change = Callable[[pb.ClientFrame], object]


@dataclass
class Attack:
    """A silo that says hello as it should, and then what a test wants."""

    fault: Fault
    spec: SessionSpec

    def frames(self, *requests: Request) -> list[pb.ClientFrame]:
        rules = HopRules(self.spec)
        return [frame for one in requests for frame in encode_request(one, rules).frames()]

    def ending(
        self, *frames: pb.ClientFrame, hello: Change = lambda hello: None
    ) -> tuple[grpc.StatusCode, str]:
        """How the stream ended; what was begun has left nothing."""
        trunk = self.fault.trunk
        invited = trunk.invite(VICTIM)
        first = hello_frame(self.spec, invited.ticket)
        hello(first)
        with RawSilo(trunk.server.address) as silo:
            *ending, details = silo.send(first, *frames).ending()
        self.fault.texts.append(details)
        assert invited.record.collect() is None
        return ending[0], ending[1]
