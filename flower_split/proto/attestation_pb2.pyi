from flower_split.proto import trunk_pb2 as _trunk_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttestRequest(_message.Message):
    __slots__ = ("protocol_version", "ticket", "nonce", "purpose")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    ticket: _trunk_pb2.Ticket
    nonce: bytes
    purpose: _trunk_pb2.Purpose
    def __init__(self, protocol_version: _Optional[int] = ..., ticket: _Optional[_Union[_trunk_pb2.Ticket, _Mapping]] = ..., nonce: _Optional[bytes] = ..., purpose: _Optional[_Union[_trunk_pb2.Purpose, str]] = ...) -> None: ...

class AttestReply(_message.Message):
    __slots__ = ("format", "evidence", "certificate")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    format: str
    evidence: bytes
    certificate: bytes
    def __init__(self, format: _Optional[str] = ..., evidence: _Optional[bytes] = ..., certificate: _Optional[bytes] = ...) -> None: ...
