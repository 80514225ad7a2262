from flower_split.proto import trunk_pb2 as _trunk_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CallFrame(_message.Message):
    __slots__ = ("call", "piece")
    CALL_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    call: Call
    piece: bytes
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class AnswerFrame(_message.Message):
    __slots__ = ("answer", "piece")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    answer: Answer
    piece: bytes
    def __init__(self, answer: _Optional[_Union[Answer, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("text_bytes", "tensor_bytes", "crc32")
    TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TENSOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    text_bytes: int
    tensor_bytes: int
    crc32: int
    def __init__(self, text_bytes: _Optional[int] = ..., tensor_bytes: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("protocol_version", "version", "run", "content", "hello", "open", "begin", "invite", "look", "collect", "accept", "discard", "connected", "read_shared", "read_states", "load_states", "close")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    INVITE_FIELD_NUMBER: _ClassVar[int]
    LOOK_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    READ_SHARED_FIELD_NUMBER: _ClassVar[int]
    READ_STATES_FIELD_NUMBER: _ClassVar[int]
    LOAD_STATES_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    version: str
    run: bytes
    content: Content
    hello: Hello
    open: Open
    begin: Begin
    invite: Invite
    look: Look
    collect: Collect
    accept: Accept
    discard: Discard
    connected: Connected
    read_shared: ReadShared
    read_states: ReadStates
    load_states: LoadStates
    close: Close
    def __init__(self, protocol_version: _Optional[int] = ..., version: _Optional[str] = ..., run: _Optional[bytes] = ..., content: _Optional[_Union[Content, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., invite: _Optional[_Union[Invite, _Mapping]] = ..., look: _Optional[_Union[Look, _Mapping]] = ..., collect: _Optional[_Union[Collect, _Mapping]] = ..., accept: _Optional[_Union[Accept, _Mapping]] = ..., discard: _Optional[_Union[Discard, _Mapping]] = ..., connected: _Optional[_Union[Connected, _Mapping]] = ..., read_shared: _Optional[_Union[ReadShared, _Mapping]] = ..., read_states: _Optional[_Union[ReadStates, _Mapping]] = ..., load_states: _Optional[_Union[LoadStates, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("content", "welcome", "opened", "done", "invited", "looked", "collected")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    INVITED_FIELD_NUMBER: _ClassVar[int]
    LOOKED_FIELD_NUMBER: _ClassVar[int]
    COLLECTED_FIELD_NUMBER: _ClassVar[int]
    content: Content
    welcome: Welcome
    opened: Opened
    done: Done
    invited: Invited
    looked: Looked
    collected: Collected
    def __init__(self, content: _Optional[_Union[Content, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., invited: _Optional[_Union[Invited, _Mapping]] = ..., looked: _Optional[_Union[Looked, _Mapping]] = ..., collected: _Optional[_Union[Collected, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Opened(_message.Message):
    __slots__ = ("run", "address", "tls", "ca")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    address: str
    tls: bool
    ca: str
    def __init__(self, run: _Optional[bytes] = ..., address: _Optional[str] = ..., tls: bool = ..., ca: _Optional[str] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Done(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Invite(_message.Message):
    __slots__ = ("session", "run_id", "node_id", "server_round", "purpose", "seconds", "start", "known")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    run_id: int
    node_id: int
    server_round: int
    purpose: str
    seconds: float
    start: int
    known: bool
    def __init__(self, session: _Optional[bytes] = ..., run_id: _Optional[int] = ..., node_id: _Optional[int] = ..., server_round: _Optional[int] = ..., purpose: _Optional[str] = ..., seconds: _Optional[float] = ..., start: _Optional[int] = ..., known: bool = ...) -> None: ...

class Invited(_message.Message):
    __slots__ = ("token", "pack", "delivery_tokens")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    token: str
    pack: str
    delivery_tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, token: _Optional[str] = ..., pack: _Optional[str] = ..., delivery_tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class Look(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Looked(_message.Message):
    __slots__ = ("waiting", "sessions", "stopping")
    WAITING_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    waiting: int
    sessions: _containers.RepeatedCompositeFieldContainer[Seen]
    stopping: bool
    def __init__(self, waiting: _Optional[int] = ..., sessions: _Optional[_Iterable[_Union[Seen, _Mapping]]] = ..., stopping: bool = ...) -> None: ...

class Seen(_message.Message):
    __slots__ = ("session", "stage", "silo", "progress")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SILO_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    stage: str
    silo: str
    progress: _trunk_pb2.Summary
    def __init__(self, session: _Optional[bytes] = ..., stage: _Optional[str] = ..., silo: _Optional[str] = ..., progress: _Optional[_Union[_trunk_pb2.Summary, _Mapping]] = ...) -> None: ...

class Collect(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class Collected(_message.Message):
    __slots__ = ("finished", "silo", "summary", "scaling")
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    SILO_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    finished: bool
    silo: str
    summary: _trunk_pb2.Summary
    scaling: Scaling
    def __init__(self, finished: bool = ..., silo: _Optional[str] = ..., summary: _Optional[_Union[_trunk_pb2.Summary, _Mapping]] = ..., scaling: _Optional[_Union[Scaling, _Mapping]] = ...) -> None: ...

class Scaling(_message.Message):
    __slots__ = ("r", "alpha", "rslora")
    R_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    RSLORA_FIELD_NUMBER: _ClassVar[int]
    r: int
    alpha: float
    rslora: bool
    def __init__(self, r: _Optional[int] = ..., alpha: _Optional[float] = ..., rslora: bool = ...) -> None: ...

class Accept(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class Discard(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class Connected(_message.Message):
    __slots__ = ("node_ids",)
    NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    node_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, node_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadShared(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadStates(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadStates(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
