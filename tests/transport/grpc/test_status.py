"""Every error class crosses the wire under its own code and comes back as itself."""

import grpc
import pytest

from flower_split.errors import (
    HandshakeError,
    TrunkBusyError,
    TrunkError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.transport.grpc.status import CODES, ERROR_KEY, from_status, to_status


@pytest.mark.parametrize("kind", CODES)
def test_an_error_survives_the_wire(kind: type[TrunkError]) -> None:
    code, details, metadata = to_status(kind("what happened"))
    error = from_status(code, details, metadata, "host:1")
    assert type(error) is kind
    assert str(error) == "trunk at host:1: what happened"


def test_the_codes_are_the_contract() -> None:
    assert {kind.__name__: code.name for kind, code in CODES.items()} == {
        "WireError": "INVALID_ARGUMENT",
        "HandshakeError": "FAILED_PRECONDITION",
        "SequenceError": "FAILED_PRECONDITION",
        "TransformError": "FAILED_PRECONDITION",
        "TokenError": "UNAUTHENTICATED",
        "ForeignRunError": "PERMISSION_DENIED",
        "TrunkBusyError": "RESOURCE_EXHAUSTED",
        "DeadlineError": "DEADLINE_EXCEEDED",
        "ReplayError": "ABORTED",
        "TrunkUnavailableError": "UNAVAILABLE",
        "CertificateError": "UNAVAILABLE",
        "AttestationError": "FAILED_PRECONDITION",
    }


def test_a_subclass_crosses_as_the_class_that_the_table_knows() -> None:
    class OddWireError(WireError):
        pass

    code, details, metadata = to_status(OddWireError("odd"))
    assert type(from_status(code, details, metadata, "a:1")) is WireError


def test_a_plain_trunk_error_crosses_as_unavailable() -> None:
    assert to_status(TrunkError("?"))[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_a_code_without_our_metadata_is_mapped_all_the_same(code: grpc.StatusCode) -> None:
    error = from_status(code, None, None, "host:1")
    assert CODES.get(type(error)) is code or type(error) is TrunkUnavailableError
    assert "host:1" in str(error) and code.name in str(error)


def test_bounds_of_grpc_itself_mean_busy() -> None:
    error = from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit", (), "h:1")
    assert type(error) is TrunkBusyError


def test_a_name_that_contradicts_the_code_is_not_believed() -> None:
    metadata = ((ERROR_KEY, HandshakeError.__name__),)
    error = from_status(grpc.StatusCode.UNAVAILABLE, "gone", metadata, "h:1")
    assert type(error) is TrunkUnavailableError


def test_details_fit_the_headers() -> None:
    assert len(to_status(WireError("x" * 100_000))[1]) == 1024
