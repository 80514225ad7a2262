"""`ControlCaller`: calls of a strategy to its trunk service, each repeated until it is answered."""

import time
from collections.abc import Iterator
from typing import Self

import grpc

import flower_split
from flower_split.config.address import Address
from flower_split.control.content import MOST_TEXT, ArrivingContent, Content, pieces
from flower_split.control.service import PROTOCOL_VERSION
from flower_split.control.status import from_status
from flower_split.errors import (
    CertificateError,
    FlowerSplitError,
    TrunkRestartedError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.proto import control_pb2 as pb
from flower_split.proto.control_pb2_grpc import ControlStub
from flower_split.tls import ClientTls
from flower_split.transport.grpc.channel import (
    Keepalive,
    channel_credentials,
    channel_options,
    growing_pauses,
    open_channel,
)
from flower_split.transport.grpc.diagnosis import diagnose

QUICK = 10.0
"""Seconds for an answer that needs no work."""
LONG = 600.0
"""Seconds for any other; a service that hangs or is cut off is found by keepalive, in 10 s."""

_MOST_BYTES = 64 << 30
_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class ControlCaller:
    """A connection to a trunk service; a context manager. Its methods may be called by threads.

    Args:
        address: `host:port` of the control port.
        tls: Whom to believe, and the strategy's certificate; None calls without encryption.
        patience: Seconds for which a service that is gone is waited for.
    """

    def __init__(self, address: str, tls: ClientTls | None, *, patience: float) -> None:
        self.address = address
        self._tls = tls
        self._patience = patience
        self._channel: grpc.Channel | None = None

    def __enter__(self) -> Self:
        credentials = None if self._tls is None else channel_credentials(self._tls)
        options = [*channel_options(Keepalive()), *_RECONNECT]
        self._channel = open_channel(Address.parse(self.address), credentials, options)
        self._do = ControlStub(self._channel).Do  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._channel is not None:
            self._channel.close()

    def call(
        self,
        call: pb.Call,
        content: Content | None = None,
        *,
        seconds: float = LONG,
        patience: float | None = None,
    ) -> tuple[pb.Answer, Content]:
        """The answer to a call, which may reach the service more than once.

        Args:
            call: The call.
            content: What goes beside it.
            seconds: For each attempt.
            patience: In place of the caller's own.

        Raises:
            TrunkRestartedError: the service knows nothing of the run.
            TrunkUnavailableError: it was not there for as long as it was waited for.
            FlowerSplitError: it refused the call.
        """
        call.protocol_version, call.version = PROTOCOL_VERSION, flower_split.__version__
        header, data = (content or Content()).packed()
        if header is not None:
            call.content.CopyFrom(header)
        patience = self._patience if patience is None else patience
        end, pauses = time.monotonic() + patience, growing_pauses(1.0)
        while True:
            try:
                return self._once(call, data, seconds)
            except TrunkRestartedError:
                raise
            except TrunkUnavailableError as error:
                pause = next(pauses)
                if patience == 0:
                    raise
                if time.monotonic() + pause > end:
                    raise self._gone(error, patience) from error
                time.sleep(pause)

    def _once(self, call: pb.Call, data: bytes, seconds: float) -> tuple[pb.Answer, Content]:
        try:
            # A service that is not there is found at once; on its way there, name and TLS included,
            # everything has the time of the call.
            answers = self._do(_frames(call, data), timeout=seconds)
            return _read(answers)
        except grpc.RpcError as error:
            raise _meant(error, self.address) from error

    def _gone(self, error: TrunkUnavailableError, patience: float) -> FlowerSplitError:
        found = diagnose(self.address, self._tls, 5.0)
        if isinstance(found, CertificateError):
            return CertificateError(
                f"{found}. Of a trunk service it is the run config that names them: "
                "trunk.service-ca, trunk.service-certificate and trunk.service-key"
            )
        return TrunkUnavailableError(
            f"the trunk service at {self.address} could not be used for {patience:g} s: "
            f"{found or error}. Start it (flower-split trunk serve), or set trunk.service to where "
            "its control port is; with TLS, trunk.service-certificate must be one that it takes"
        )


def _frames(call: pb.Call, data: bytes) -> Iterator[pb.CallFrame]:
    frame = pb.CallFrame(call=call)
    for piece in pieces(data):
        frame.piece = piece
        yield frame
        frame = pb.CallFrame()
    if not data:
        yield frame


def _read(answers: Iterator[pb.AnswerFrame]) -> tuple[pb.Answer, Content]:
    first = next(answers, None)
    if first is None:
        raise WireError("the trunk service ended a call without an answer")
    if not first.answer.HasField("content"):
        for _ in answers:  # to its status
            raise WireError("the trunk service sent more than it announced")
        return first.answer, Content()
    arriving = ArrivingContent(first.answer.content, most_text=MOST_TEXT, most_tensors=_MOST_BYTES)
    arriving.add(first.piece)
    for frame in answers:
        arriving.add(frame.piece)
    return first.answer, arriving.content()


def _meant(error: grpc.RpcError, address: str) -> FlowerSplitError:
    if not isinstance(error, grpc.Call):
        return TrunkUnavailableError(f"trunk service at {address}: {type(error).__name__}")
    return from_status(error.code(), error.details(), error.trailing_metadata(), address)
