"""The table of `TrunkError` classes and gRPC status codes, and the mapping both ways.

Several classes share a code, so the class's name travels in the trailing metadata.
"""

from collections.abc import Iterable

import grpc

from flower_split.errors import (
    AttestationError,
    CertificateError,
    DeadlineError,
    ForeignRunError,
    HandshakeError,
    ReplayError,
    SequenceError,
    TokenError,
    TransformError,
    TrunkBusyError,
    TrunkError,
    TrunkUnavailableError,
    WireError,
)

ERROR_KEY = "flower-split-error"
"""Trailing metadata with the name of the error's class."""

CODES: dict[type[TrunkError], grpc.StatusCode] = {
    WireError: grpc.StatusCode.INVALID_ARGUMENT,
    SequenceError: grpc.StatusCode.FAILED_PRECONDITION,
    HandshakeError: grpc.StatusCode.FAILED_PRECONDITION,
    TransformError: grpc.StatusCode.FAILED_PRECONDITION,
    TokenError: grpc.StatusCode.UNAUTHENTICATED,
    ForeignRunError: grpc.StatusCode.PERMISSION_DENIED,
    TrunkBusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    ReplayError: grpc.StatusCode.ABORTED,
    TrunkUnavailableError: grpc.StatusCode.UNAVAILABLE,
    CertificateError: grpc.StatusCode.UNAVAILABLE,
    AttestationError: grpc.StatusCode.FAILED_PRECONDITION,
}

if set(CODES) != set(TrunkError.__subclasses__()):
    raise ImportError("transport.status.CODES does not cover the subclasses of TrunkError")

_BY_NAME = {kind.__name__: kind for kind in CODES}
_BY_CODE: dict[grpc.StatusCode, type[TrunkError]] = {
    code: kind for kind, code in reversed(CODES.items())
}
# HTTP/2 limits the size of headers, in which gRPC sends the details
_MAX_DETAILS = 1024

Status = tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]


def to_status(error: TrunkError) -> Status:
    """Code, details and trailing metadata under which `error` crosses the wire."""
    kind = next((kind for kind in CODES if isinstance(error, kind)), TrunkUnavailableError)
    return CODES[kind], str(error)[:_MAX_DETAILS], ((ERROR_KEY, kind.__name__),)


def from_status(
    code: grpc.StatusCode,
    details: str | None,
    metadata: Iterable[tuple[str, str | bytes]] | None,
    address: str,
) -> TrunkError:
    """The error that a peer at `address` meant by a status."""
    name = next((value for key, value in metadata or () if key == ERROR_KEY), "")
    kind = _BY_NAME.get(str(name))
    if kind is None or CODES[kind] is not code:
        # gRPC's own word, not the peer's: a code outside the table means there is no trunk to
        # talk to any more
        kind = _BY_CODE.get(code, TrunkUnavailableError)
        return kind(f"trunk at {address}: {code.name}: {details or 'no details'}")
    return kind(f"trunk at {address}: {details or 'no details'}")
