from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
    DTYPE_INT64: _ClassVar[DType]
    DTYPE_BOOL: _ClassVar[DType]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_RAW: _ClassVar[Codec]
    CODEC_FP32: _ClassVar[Codec]
    CODEC_BF16: _ClassVar[Codec]
    CODEC_FP16: _ClassVar[Codec]
    CODEC_INT8: _ClassVar[Codec]
    CODEC_NF4: _ClassVar[Codec]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_H1: _ClassVar[Role]
    ROLE_H2: _ClassVar[Role]
    ROLE_G2: _ClassVar[Role]
    ROLE_G1: _ClassVar[Role]
    ROLE_ATTENTION_MASK: _ClassVar[Role]
    ROLE_POSITION_IDS: _ClassVar[Role]
    ROLE_ADAPTER_UP: _ClassVar[Role]
    ROLE_ADAPTER_DOWN: _ClassVar[Role]
    ROLE_PREFIX: _ClassVar[Role]
    ROLE_PREFIX_GRAD: _ClassVar[Role]

class Purpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PURPOSE_UNSPECIFIED: _ClassVar[Purpose]
    PURPOSE_TRAIN: _ClassVar[Purpose]
    PURPOSE_EVALUATE: _ClassVar[Purpose]

class EditKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EDIT_KIND_UNSPECIFIED: _ClassVar[EditKind]
    EDIT_KIND_REORDER: _ClassVar[EditKind]
    EDIT_KIND_CROP: _ClassVar[EditKind]
    EDIT_KIND_REPEAT: _ClassVar[EditKind]
    EDIT_KIND_SELECT: _ClassVar[EditKind]
    EDIT_KIND_RESET: _ClassVar[EditKind]

class AdapterGrad(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_GRAD_ADD: _ClassVar[AdapterGrad]
    ADAPTER_GRAD_MEASURE: _ClassVar[AdapterGrad]
    ADAPTER_GRAD_DROP: _ClassVar[AdapterGrad]
    ADAPTER_GRAD_RETURN: _ClassVar[AdapterGrad]
    ADAPTER_GRAD_HOLD: _ClassVar[AdapterGrad]

class AdapterAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_ACTION_UNSPECIFIED: _ClassVar[AdapterAction]
    ADAPTER_ACTION_LIST: _ClassVar[AdapterAction]
    ADAPTER_ACTION_READ: _ClassVar[AdapterAction]
    ADAPTER_ACTION_WRITE: _ClassVar[AdapterAction]
    ADAPTER_ACTION_COPY: _ClassVar[AdapterAction]
    ADAPTER_ACTION_SNAPSHOT: _ClassVar[AdapterAction]
    ADAPTER_ACTION_RESTORE: _ClassVar[AdapterAction]
    ADAPTER_ACTION_SNAPSHOT_MOMENTS: _ClassVar[AdapterAction]
    ADAPTER_ACTION_RESTORE_MOMENTS: _ClassVar[AdapterAction]
    ADAPTER_ACTION_RANKS_UPDATE: _ClassVar[AdapterAction]
    ADAPTER_ACTION_RANKS_SCORES: _ClassVar[AdapterAction]
    ADAPTER_ACTION_RANKS_MASK: _ClassVar[AdapterAction]
    ADAPTER_ACTION_RANKS_MASK_AGAIN: _ClassVar[AdapterAction]
    ADAPTER_ACTION_RANKS_RESET: _ClassVar[AdapterAction]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_BFLOAT16: DType
DTYPE_FLOAT16: DType
DTYPE_INT64: DType
DTYPE_BOOL: DType
CODEC_UNSPECIFIED: Codec
CODEC_RAW: Codec
CODEC_FP32: Codec
CODEC_BF16: Codec
CODEC_FP16: Codec
CODEC_INT8: Codec
CODEC_NF4: Codec
ROLE_UNSPECIFIED: Role
ROLE_H1: Role
ROLE_H2: Role
ROLE_G2: Role
ROLE_G1: Role
ROLE_ATTENTION_MASK: Role
ROLE_POSITION_IDS: Role
ROLE_ADAPTER_UP: Role
ROLE_ADAPTER_DOWN: Role
ROLE_PREFIX: Role
ROLE_PREFIX_GRAD: Role
PURPOSE_UNSPECIFIED: Purpose
PURPOSE_TRAIN: Purpose
PURPOSE_EVALUATE: Purpose
EDIT_KIND_UNSPECIFIED: EditKind
EDIT_KIND_REORDER: EditKind
EDIT_KIND_CROP: EditKind
EDIT_KIND_REPEAT: EditKind
EDIT_KIND_SELECT: EditKind
EDIT_KIND_RESET: EditKind
ADAPTER_GRAD_ADD: AdapterGrad
ADAPTER_GRAD_MEASURE: AdapterGrad
ADAPTER_GRAD_DROP: AdapterGrad
ADAPTER_GRAD_RETURN: AdapterGrad
ADAPTER_GRAD_HOLD: AdapterGrad
ADAPTER_ACTION_UNSPECIFIED: AdapterAction
ADAPTER_ACTION_LIST: AdapterAction
ADAPTER_ACTION_READ: AdapterAction
ADAPTER_ACTION_WRITE: AdapterAction
ADAPTER_ACTION_COPY: AdapterAction
ADAPTER_ACTION_SNAPSHOT: AdapterAction
ADAPTER_ACTION_RESTORE: AdapterAction
ADAPTER_ACTION_SNAPSHOT_MOMENTS: AdapterAction
ADAPTER_ACTION_RESTORE_MOMENTS: AdapterAction
ADAPTER_ACTION_RANKS_UPDATE: AdapterAction
ADAPTER_ACTION_RANKS_SCORES: AdapterAction
ADAPTER_ACTION_RANKS_MASK: AdapterAction
ADAPTER_ACTION_RANKS_MASK_AGAIN: AdapterAction
ADAPTER_ACTION_RANKS_RESET: AdapterAction

class TensorHeader(_message.Message):
    __slots__ = ("role", "dtype", "codec", "shape", "num_bytes", "crc32")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    role: Role
    dtype: DType
    codec: Codec
    shape: _containers.RepeatedScalarFieldContainer[int]
    num_bytes: int
    crc32: int
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., dtype: _Optional[_Union[DType, str]] = ..., codec: _Optional[_Union[Codec, str]] = ..., shape: _Optional[_Iterable[int]] = ..., num_bytes: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("tensor", "offset", "data")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    tensor: int
    offset: int
    data: bytes
    def __init__(self, tensor: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ClientFrame(_message.Message):
    __slots__ = ("hello", "forward", "backward", "release", "drop_cache", "step", "finish", "discard", "adapter", "resume", "leave", "weigh", "chunks", "received")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    DROP_CACHE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    WEIGH_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    forward: Forward
    backward: Backward
    release: Release
    drop_cache: DropCache
    step: Step
    finish: Finish
    discard: Discard
    adapter: AdapterCall
    resume: Resume
    leave: Leave
    weigh: Weigh
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    received: int
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., forward: _Optional[_Union[Forward, _Mapping]] = ..., backward: _Optional[_Union[Backward, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., drop_cache: _Optional[_Union[DropCache, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., discard: _Optional[_Union[Discard, _Mapping]] = ..., adapter: _Optional[_Union[AdapterCall, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., weigh: _Optional[_Union[Weigh, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., received: _Optional[int] = ...) -> None: ...

class ServerFrame(_message.Message):
    __slots__ = ("welcome", "forward", "backward", "step", "summary", "adapter", "resumed", "chunks")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    forward: ForwardReply
    backward: BackwardReply
    step: StepReply
    summary: Summary
    adapter: AdapterReply
    resumed: Resumed
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., forward: _Optional[_Union[ForwardReply, _Mapping]] = ..., backward: _Optional[_Union[BackwardReply, _Mapping]] = ..., step: _Optional[_Union[StepReply, _Mapping]] = ..., summary: _Optional[_Union[Summary, _Mapping]] = ..., adapter: _Optional[_Union[AdapterReply, _Mapping]] = ..., resumed: _Optional[_Union[Resumed, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ...) -> None: ...

class Ticket(_message.Message):
    __slots__ = ("run_id", "node_id", "server_round", "token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: int
    node_id: int
    server_round: int
    token: str
    def __init__(self, run_id: _Optional[int] = ..., node_id: _Optional[int] = ..., server_round: _Optional[int] = ..., token: _Optional[str] = ...) -> None: ...

class Optimizer(_message.Message):
    __slots__ = ("beta1", "beta2", "eps", "weight_decay", "max_grad_norm", "max_learning_rate")
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    MAX_LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: float
    max_learning_rate: float
    def __init__(self, beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., eps: _Optional[float] = ..., weight_decay: _Optional[float] = ..., max_grad_norm: _Optional[float] = ..., max_learning_rate: _Optional[float] = ...) -> None: ...

class Privacy(_message.Message):
    __slots__ = ("noise", "clip", "expected_batch")
    NOISE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_BATCH_FIELD_NUMBER: _ClassVar[int]
    noise: float
    clip: float
    expected_batch: int
    def __init__(self, noise: _Optional[float] = ..., clip: _Optional[float] = ..., expected_batch: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "ticket", "purpose", "fingerprint", "num_layers", "bottom_layers", "top_layers", "dtype", "trunk_adapters", "adapter", "h1", "h2", "g2", "g1", "optimizer", "seed", "silo", "session_states", "pack", "transforms", "loaded_adapter", "prefix_tokens", "secret", "attempt", "clips", "noises", "privacy")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOP_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    TRUNK_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    H1_FIELD_NUMBER: _ClassVar[int]
    H2_FIELD_NUMBER: _ClassVar[int]
    G2_FIELD_NUMBER: _ClassVar[int]
    G1_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SILO_FIELD_NUMBER: _ClassVar[int]
    SESSION_STATES_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMS_FIELD_NUMBER: _ClassVar[int]
    LOADED_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CLIPS_FIELD_NUMBER: _ClassVar[int]
    NOISES_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    ticket: Ticket
    purpose: Purpose
    fingerprint: str
    num_layers: int
    bottom_layers: int
    top_layers: int
    dtype: DType
    trunk_adapters: str
    adapter: str
    h1: Codec
    h2: Codec
    g2: Codec
    g1: Codec
    optimizer: Optimizer
    seed: int
    silo: str
    session_states: _containers.RepeatedScalarFieldContainer[str]
    pack: str
    transforms: _containers.RepeatedScalarFieldContainer[str]
    loaded_adapter: str
    prefix_tokens: int
    secret: bytes
    attempt: int
    clips: _containers.RepeatedScalarFieldContainer[float]
    noises: _containers.RepeatedScalarFieldContainer[float]
    privacy: Privacy
    def __init__(self, protocol_version: _Optional[int] = ..., ticket: _Optional[_Union[Ticket, _Mapping]] = ..., purpose: _Optional[_Union[Purpose, str]] = ..., fingerprint: _Optional[str] = ..., num_layers: _Optional[int] = ..., bottom_layers: _Optional[int] = ..., top_layers: _Optional[int] = ..., dtype: _Optional[_Union[DType, str]] = ..., trunk_adapters: _Optional[str] = ..., adapter: _Optional[str] = ..., h1: _Optional[_Union[Codec, str]] = ..., h2: _Optional[_Union[Codec, str]] = ..., g2: _Optional[_Union[Codec, str]] = ..., g1: _Optional[_Union[Codec, str]] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., seed: _Optional[int] = ..., silo: _Optional[str] = ..., session_states: _Optional[_Iterable[str]] = ..., pack: _Optional[str] = ..., transforms: _Optional[_Iterable[str]] = ..., loaded_adapter: _Optional[str] = ..., prefix_tokens: _Optional[int] = ..., secret: _Optional[bytes] = ..., attempt: _Optional[int] = ..., clips: _Optional[_Iterable[float]] = ..., noises: _Optional[_Iterable[float]] = ..., privacy: _Optional[_Union[Privacy, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("max_in_flight", "max_message_tokens", "max_cached_tokens", "resumed", "max_adapter_elements", "reconnect_seconds")
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    MAX_ADAPTER_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    RECONNECT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    max_in_flight: int
    max_message_tokens: int
    max_cached_tokens: int
    resumed: str
    max_adapter_elements: int
    reconnect_seconds: float
    def __init__(self, max_in_flight: _Optional[int] = ..., max_message_tokens: _Optional[int] = ..., max_cached_tokens: _Optional[int] = ..., resumed: _Optional[str] = ..., max_adapter_elements: _Optional[int] = ..., reconnect_seconds: _Optional[float] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("protocol_version", "secret", "attempt", "received", "first", "digests")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    secret: bytes
    attempt: int
    received: int
    first: int
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, protocol_version: _Optional[int] = ..., secret: _Optional[bytes] = ..., attempt: _Optional[int] = ..., received: _Optional[int] = ..., first: _Optional[int] = ..., digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Resumed(_message.Message):
    __slots__ = ("taken",)
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    taken: int
    def __init__(self, taken: _Optional[int] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CacheEdit(_message.Message):
    __slots__ = ("kind", "values")
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    kind: EditKind
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[_Union[EditKind, str]] = ..., values: _Optional[_Iterable[int]] = ...) -> None: ...

class CacheUse(_message.Message):
    __slots__ = ("cache_id", "past_length", "edits")
    CACHE_ID_FIELD_NUMBER: _ClassVar[int]
    PAST_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    cache_id: int
    past_length: int
    edits: _containers.RepeatedCompositeFieldContainer[CacheEdit]
    def __init__(self, cache_id: _Optional[int] = ..., past_length: _Optional[int] = ..., edits: _Optional[_Iterable[_Union[CacheEdit, _Mapping]]] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("step", "microbatch", "keep_graph", "dropout", "cache", "tensors", "adapter", "autocast")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    KEEP_GRAPH_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    AUTOCAST_FIELD_NUMBER: _ClassVar[int]
    step: int
    microbatch: int
    keep_graph: bool
    dropout: bool
    cache: CacheUse
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    adapter: AdapterUse
    autocast: DType
    def __init__(self, step: _Optional[int] = ..., microbatch: _Optional[int] = ..., keep_graph: bool = ..., dropout: bool = ..., cache: _Optional[_Union[CacheUse, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., adapter: _Optional[_Union[AdapterUse, _Mapping]] = ..., autocast: _Optional[_Union[DType, str]] = ...) -> None: ...

class AdapterUse(_message.Message):
    __slots__ = ("disabled", "copy", "scale")
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    disabled: bool
    copy: str
    scale: float
    def __init__(self, disabled: bool = ..., copy: _Optional[str] = ..., scale: _Optional[float] = ...) -> None: ...

class ForwardReply(_message.Message):
    __slots__ = ("microbatch", "tensors", "orthogonality")
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    ORTHOGONALITY_FIELD_NUMBER: _ClassVar[int]
    microbatch: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    orthogonality: float
    def __init__(self, microbatch: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., orthogonality: _Optional[float] = ...) -> None: ...

class Backward(_message.Message):
    __slots__ = ("step", "microbatch", "wants_input_grad", "tensors", "adapter_grad", "orthogonality_grad")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    WANTS_INPUT_GRAD_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_GRAD_FIELD_NUMBER: _ClassVar[int]
    ORTHOGONALITY_GRAD_FIELD_NUMBER: _ClassVar[int]
    step: int
    microbatch: int
    wants_input_grad: bool
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    adapter_grad: AdapterGrad
    orthogonality_grad: float
    def __init__(self, step: _Optional[int] = ..., microbatch: _Optional[int] = ..., wants_input_grad: bool = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., adapter_grad: _Optional[_Union[AdapterGrad, str]] = ..., orthogonality_grad: _Optional[float] = ...) -> None: ...

class BackwardReply(_message.Message):
    __slots__ = ("microbatch", "tensors", "norm", "largest", "squared_norms")
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    SQUARED_NORMS_FIELD_NUMBER: _ClassVar[int]
    microbatch: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    norm: float
    largest: float
    squared_norms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, microbatch: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., norm: _Optional[float] = ..., largest: _Optional[float] = ..., squared_norms: _Optional[_Iterable[float]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("microbatch",)
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    microbatch: int
    def __init__(self, microbatch: _Optional[int] = ...) -> None: ...

class DropCache(_message.Message):
    __slots__ = ("cache_id",)
    CACHE_ID_FIELD_NUMBER: _ClassVar[int]
    cache_id: int
    def __init__(self, cache_id: _Optional[int] = ...) -> None: ...

class Weigh(_message.Message):
    __slots__ = ("microbatch", "factors")
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    microbatch: int
    factors: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, microbatch: _Optional[int] = ..., factors: _Optional[_Iterable[float]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("step", "learning_rate", "norms_before", "norms_after", "constants", "scale", "clip", "keeps_gradient")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    NORMS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    NORMS_AFTER_FIELD_NUMBER: _ClassVar[int]
    CONSTANTS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    KEEPS_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    step: int
    learning_rate: float
    norms_before: _containers.RepeatedScalarFieldContainer[float]
    norms_after: _containers.RepeatedScalarFieldContainer[float]
    constants: Constants
    scale: float
    clip: float
    keeps_gradient: bool
    def __init__(self, step: _Optional[int] = ..., learning_rate: _Optional[float] = ..., norms_before: _Optional[_Iterable[float]] = ..., norms_after: _Optional[_Iterable[float]] = ..., constants: _Optional[_Union[Constants, _Mapping]] = ..., scale: _Optional[float] = ..., clip: _Optional[float] = ..., keeps_gradient: bool = ...) -> None: ...

class Constants(_message.Message):
    __slots__ = ("beta1", "beta2", "eps", "weight_decay")
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    def __init__(self, beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., eps: _Optional[float] = ..., weight_decay: _Optional[float] = ...) -> None: ...

class StepReply(_message.Message):
    __slots__ = ("step", "norms")
    STEP_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    step: int
    norms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, step: _Optional[int] = ..., norms: _Optional[_Iterable[float]] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Discard(_message.Message):
    __slots__ = ("zeros",)
    ZEROS_FIELD_NUMBER: _ClassVar[int]
    zeros: bool
    def __init__(self, zeros: bool = ...) -> None: ...

class AdapterCall(_message.Message):
    __slots__ = ("action", "name", "tensors", "threshold")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    action: AdapterAction
    name: str
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    threshold: float
    def __init__(self, action: _Optional[_Union[AdapterAction, str]] = ..., name: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., threshold: _Optional[float] = ...) -> None: ...

class AdapterTensor(_message.Message):
    __slots__ = ("name", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class AdapterReply(_message.Message):
    __slots__ = ("action", "held", "tensors", "scores", "kept")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    action: AdapterAction
    held: _containers.RepeatedCompositeFieldContainer[AdapterTensor]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    scores: _containers.RepeatedScalarFieldContainer[float]
    kept: int
    def __init__(self, action: _Optional[_Union[AdapterAction, str]] = ..., held: _Optional[_Iterable[_Union[AdapterTensor, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., scores: _Optional[_Iterable[float]] = ..., kept: _Optional[int] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("steps", "forwards", "backwards", "tokens", "wire_bytes", "queue")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FORWARDS_FIELD_NUMBER: _ClassVar[int]
    BACKWARDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    steps: int
    forwards: int
    backwards: int
    tokens: int
    wire_bytes: WireBytes
    queue: QueueUse
    def __init__(self, steps: _Optional[int] = ..., forwards: _Optional[int] = ..., backwards: _Optional[int] = ..., tokens: _Optional[int] = ..., wire_bytes: _Optional[_Union[WireBytes, _Mapping]] = ..., queue: _Optional[_Union[QueueUse, _Mapping]] = ...) -> None: ...

class QueueUse(_message.Message):
    __slots__ = ("seconds", "length", "rows", "rows_beside")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_BESIDE_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    length: int
    rows: int
    rows_beside: int
    def __init__(self, seconds: _Optional[float] = ..., length: _Optional[int] = ..., rows: _Optional[int] = ..., rows_beside: _Optional[int] = ...) -> None: ...

class WireBytes(_message.Message):
    __slots__ = ("h1", "h2", "g2", "g1", "context", "adapter_up", "adapter_down", "prefix", "prefix_grad")
    H1_FIELD_NUMBER: _ClassVar[int]
    H2_FIELD_NUMBER: _ClassVar[int]
    G2_FIELD_NUMBER: _ClassVar[int]
    G1_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_UP_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DOWN_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PREFIX_GRAD_FIELD_NUMBER: _ClassVar[int]
    h1: int
    h2: int
    g2: int
    g1: int
    context: int
    adapter_up: int
    adapter_down: int
    prefix: int
    prefix_grad: int
    def __init__(self, h1: _Optional[int] = ..., h2: _Optional[int] = ..., g2: _Optional[int] = ..., g1: _Optional[int] = ..., context: _Optional[int] = ..., adapter_up: _Optional[int] = ..., adapter_down: _Optional[int] = ..., prefix: _Optional[int] = ..., prefix_grad: _Optional[int] = ...) -> None: ...

class DeliverRequest(_message.Message):
    __slots__ = ("protocol_version", "ticket", "digest", "offset")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    ticket: Ticket
    digest: bytes
    offset: int
    def __init__(self, protocol_version: _Optional[int] = ..., ticket: _Optional[_Union[Ticket, _Mapping]] = ..., digest: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class DeliverReply(_message.Message):
    __slots__ = ("data", "last")
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    last: bool
    def __init__(self, data: _Optional[bytes] = ..., last: bool = ...) -> None: ...
