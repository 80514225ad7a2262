from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Request(_message.Message):
    __slots__ = ("greeting", "offer", "go", "status")
    GREETING_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    GO_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    greeting: Greeting
    offer: Offer
    go: Go
    status: StatusRequest
    def __init__(self, greeting: _Optional[_Union[Greeting, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., go: _Optional[_Union[Go, _Mapping]] = ..., status: _Optional[_Union[StatusRequest, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("greeting", "refused", "ready", "working", "done", "failed", "status")
    GREETING_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    WORKING_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    greeting: Greeting
    refused: Refused
    ready: Ready
    working: Working
    done: Done
    failed: Failed
    status: Status
    def __init__(self, greeting: _Optional[_Union[Greeting, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., working: _Optional[_Union[Working, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class Greeting(_message.Message):
    __slots__ = ("protocol", "versions", "environment")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class EnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    versions: _containers.ScalarMap[str, str]
    environment: _containers.ScalarMap[str, str]
    def __init__(self, protocol: _Optional[int] = ..., versions: _Optional[_Mapping[str, str]] = ..., environment: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("message", "context")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    message: bytes
    context: bytes
    def __init__(self, message: _Optional[bytes] = ..., context: _Optional[bytes] = ...) -> None: ...

class Go(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Working(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Done(_message.Message):
    __slots__ = ("reply", "state")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    reply: bytes
    state: bytes
    def __init__(self, reply: _Optional[bytes] = ..., state: _Optional[bytes] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("pid", "seconds", "work", "done", "failed", "resident_bytes", "most_model_bytes", "idle_seconds", "most_idle_seconds", "models", "data")
    PID_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOST_MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MOST_IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    pid: int
    seconds: float
    work: str
    done: int
    failed: int
    resident_bytes: int
    most_model_bytes: int
    idle_seconds: float
    most_idle_seconds: float
    models: _containers.RepeatedCompositeFieldContainer[HeldModel]
    data: _containers.RepeatedCompositeFieldContainer[HeldData]
    def __init__(self, pid: _Optional[int] = ..., seconds: _Optional[float] = ..., work: _Optional[str] = ..., done: _Optional[int] = ..., failed: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., most_model_bytes: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., most_idle_seconds: _Optional[float] = ..., models: _Optional[_Iterable[_Union[HeldModel, _Mapping]]] = ..., data: _Optional[_Iterable[_Union[HeldData, _Mapping]]] = ...) -> None: ...

class HeldModel(_message.Message):
    __slots__ = ("name", "device", "bottom_layers", "top_layers", "num_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOP_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    device: str
    bottom_layers: int
    top_layers: int
    num_bytes: int
    def __init__(self, name: _Optional[str] = ..., device: _Optional[str] = ..., bottom_layers: _Optional[int] = ..., top_layers: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class HeldData(_message.Message):
    __slots__ = ("run_id", "train_examples", "held_out_examples")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TRAIN_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    run_id: int
    train_examples: int
    held_out_examples: int
    def __init__(self, run_id: _Optional[int] = ..., train_examples: _Optional[int] = ..., held_out_examples: _Optional[int] = ...) -> None: ...
