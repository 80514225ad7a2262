"""Errors of the control port: the whole tree crosses it, each by its gRPC status and its name."""

import logging
from collections.abc import Iterable, Iterator

import grpc

from flower_split.errors import FlowerSplitError, ServiceError, TrunkError, TrunkUnavailableError
from flower_split.transport.grpc.status import ERROR_KEY, Status
from flower_split.transport.grpc.status import to_status as trunk_status

logger = logging.getLogger(__name__)

_LONGEST = 1024
"""Characters: HTTP/2 limits the size of headers, in which gRPC sends them."""


def _tree(kind: type[FlowerSplitError]) -> Iterator[type[FlowerSplitError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


_BY_NAME = {kind.__name__: kind for kind in _tree(FlowerSplitError)}


def to_status(error: Exception) -> Status:
    """Code, details and trailing metadata under which `error` crosses the wire."""
    if not isinstance(error, FlowerSplitError):
        logger.error("a call failed", exc_info=error)
        error = ServiceError("the trunk service failed at this; its log says why")
    code = grpc.StatusCode.FAILED_PRECONDITION
    if isinstance(error, TrunkError):
        code, _, _ = trunk_status(error)
    return code, str(error)[:_LONGEST], ((ERROR_KEY, type(error).__name__),)


def from_status(
    code: grpc.StatusCode,
    details: str | None,
    metadata: Iterable[tuple[str, str | bytes]] | None,
    address: str,
) -> FlowerSplitError:
    """The error that a service at `address` meant by a status."""
    name = next((value for key, value in metadata or () if key == ERROR_KEY), "")
    kind = _BY_NAME.get(str(name))
    told = details or "no details"
    if kind is None:  # gRPC's own word
        return TrunkUnavailableError(f"trunk service at {address}: {code.name}: {told}")
    return kind(f"trunk service at {address}: {told}")
