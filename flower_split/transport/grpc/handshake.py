"""The handshake's frames: what a session is to be, who opens it, and the trunk's bounds."""

import math
from dataclasses import asdict, fields
from typing import Any, get_args

from flower_split.compression.table import CODEC_TABLE
from flower_split.config.wire import HOPS, NOISE, WireConfig
from flower_split.errors import ConfigError, HandshakeError, WireError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy.settings import PrivacySettings
from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.attestation_pb2 import AttestRequest
from flower_split.serialization.tables import (
    DTYPE_BY_NAME,
    DTYPE_FROM_WIRE,
    DTYPE_NAMES,
    DTYPE_TO_WIRE,
)
from flower_split.transport.grpc.resuming import LONGEST_HOLD, SECRET_BYTES
from flower_split.transport.messages import (
    PROTOCOL_VERSION,
    Purpose,
    SessionLimits,
    SessionSpec,
    Ticket,
)
from flower_split.transport.state_tags import LONGEST_SILO_NAME, MOST_OFFERS, is_tag

_PURPOSES: dict[Purpose, pb.Purpose] = {
    "train": pb.PURPOSE_TRAIN,
    "evaluate": pb.PURPOSE_EVALUATE,
}
_PURPOSE_NAMES: dict[int, Purpose] = {int(number): name for name, number in _PURPOSES.items()}
_CONSTANTS = fields(OptimizerSettings)
if set(_PURPOSES) != set(get_args(Purpose)) or len(_PURPOSES) != len(pb.Purpose.values()) - 1:
    raise ImportError("transport.hello does not cover every purpose")

# Characters of a Hello's texts: a stranger sends them too.
_LONGEST = {
    "fingerprint": 256,
    "trunk_adapters": 64,
    "adapter": 1 << 16,
    "pack": 256,
    "loaded_adapter": 256,
}
_LONGEST_TOKEN = 256
_MOST_TRANSFORMS, _LONGEST_TRANSFORM = 16, 64
MOST_ADAPTER_ELEMENTS = 1 << 31
"""Of a trunk's adapter that a silo may read: what the trunk sends of it is taken into memory."""


def hello_frame(
    spec: SessionSpec, ticket: Ticket | None, *, secret: bytes = b"", attempt: int = 0
) -> pb.ClientFrame:
    """The first frame of a session.

    Args:
        spec: What the silo brings.
        ticket: Who it is.
        secret: By which the session goes on over other streams; empty where it shall not.
        attempt: How many streams of the session there were before.

    Raises:
        HandshakeError: a field cannot be sent: an unknown name, or a number out of range.
        ConfigError: a codec that another package adds is of no use.
    """
    if spec.dtype not in DTYPE_BY_NAME:
        raise HandshakeError(f"dtype {spec.dtype!r}, expected one of {list(DTYPE_BY_NAME)}")
    hello = pb.Hello()
    codecs = {hop: CODEC_TABLE.named(getattr(spec.wire, hop)).wire for hop in HOPS}
    try:
        hello.protocol_version = spec.protocol_version
        if ticket is not None:
            hello.ticket.CopyFrom(ticket_message(ticket))
        hello.purpose = _PURPOSES[spec.purpose]
        hello.fingerprint = spec.fingerprint
        hello.num_layers = spec.num_layers
        hello.bottom_layers = spec.bottom_layers
        hello.top_layers = spec.top_layers
        hello.dtype = DTYPE_TO_WIRE[DTYPE_BY_NAME[spec.dtype]]
        hello.trunk_adapters = spec.trunk_adapters
        hello.adapter = spec.adapter
        for hop, number in codecs.items():
            setattr(hello, hop, number)
        hello.transforms.extend(spec.wire.transforms)
        if NOISE in spec.wire.transforms:
            hello.clips.extend(spec.wire.clip_of(hop) for hop in HOPS)
            hello.noises.extend(spec.wire.noise_of(hop) for hop in HOPS)
        for name, constant in asdict(spec.optimizer).items():
            setattr(hello.optimizer, name, constant)
        if spec.privacy.is_on:
            for name, setting in asdict(spec.privacy).items():
                setattr(hello.privacy, name, setting)
        hello.seed = spec.seed
        hello.silo = spec.silo
        hello.session_states.extend(spec.session_states)
        hello.pack = spec.pack
        hello.loaded_adapter = spec.loaded_adapter
        hello.prefix_tokens = spec.prefix_tokens
        hello.secret, hello.attempt = secret, attempt
    except ValueError as exc:
        raise HandshakeError(f"a number of the session does not fit the wire: {exc}") from exc
    return pb.ClientFrame(hello=hello)


def read_hello(hello: pb.Hello) -> tuple[SessionSpec, Ticket | None]:
    """What a silo's first frame asks for.

    Raises:
        HandshakeError: another protocol version, or a field out of range; says which.
    """
    check_version(hello.protocol_version)
    if len(hello.secret) not in (0, SECRET_BYTES):
        raise HandshakeError(f"secret: {len(hello.secret)} bytes, expected {SECRET_BYTES} or none")
    purpose = read_purpose(hello.purpose)
    dtype = DTYPE_FROM_WIRE.get(hello.dtype)
    if dtype not in DTYPE_NAMES:
        raise HandshakeError(f"dtype: unknown number {hello.dtype}")
    for name, longest in _LONGEST.items():
        if len(getattr(hello, name)) > longest:
            raise HandshakeError(f"{name}: more than {longest} characters")
    _check_kept(hello)
    try:
        optimizer = OptimizerSettings(
            **{setting.name: getattr(hello.optimizer, setting.name) for setting in _CONSTANTS}
        )
    except ConfigError as exc:
        raise HandshakeError(f"optimizer: {exc}") from exc
    try:
        privacy = PrivacySettings(
            noise=hello.privacy.noise,
            clip=hello.privacy.clip,
            expected_batch=hello.privacy.expected_batch,
        )
    except ConfigError as exc:
        raise HandshakeError(f"privacy: {exc}") from exc
    spec = SessionSpec(
        purpose=purpose,
        fingerprint=hello.fingerprint,
        num_layers=hello.num_layers,
        bottom_layers=hello.bottom_layers,
        top_layers=hello.top_layers,
        dtype=DTYPE_NAMES[dtype],
        trunk_adapters=hello.trunk_adapters,
        adapter=hello.adapter,
        wire=_read_wire(hello),
        optimizer=optimizer,
        privacy=privacy,
        seed=hello.seed,
        silo=hello.silo,
        session_states=tuple(hello.session_states),
        pack=hello.pack,
        loaded_adapter=hello.loaded_adapter,
        prefix_tokens=hello.prefix_tokens,
        protocol_version=hello.protocol_version,
    )
    return spec, read_ticket(hello)


def _read_wire(hello: pb.Hello) -> WireConfig:
    """The codecs and transforms that a silo asks for; `HandshakeError` where one is not here."""
    codecs: dict[str, Any] = {}
    for hop in HOPS:
        try:
            codecs[hop] = CODEC_TABLE.numbered(getattr(hello, hop)).name
        except ConfigError as exc:
            raise HandshakeError(
                f"{hop}: {exc}; a codec of another package is to be installed on both ends"
            ) from exc
    names = tuple(hello.transforms)
    if len(names) > _MOST_TRANSFORMS or any(
        len(name) > _LONGEST_TRANSFORM or not name.isprintable() for name in names
    ):
        raise HandshakeError(
            f"wire.transforms: expected at most {_MOST_TRANSFORMS} names of "
            f"{_LONGEST_TRANSFORM} printable characters"
        )
    noise: dict[str, Any] = {}
    for kind, told in (("clip", hello.clips), ("noise", hello.noises)):
        if len(told) not in (0, len(HOPS)):
            raise HandshakeError(
                f"wire: {len(told)} numbers for {kind}, expected none or {len(HOPS)}"
            )
        noise |= {f"{hop}_{kind}": number for hop, number in zip(HOPS, told, strict=False)}
    try:
        return WireConfig(transforms=names, **codecs, **noise)
    except ConfigError as exc:
        raise HandshakeError(
            f"{exc}; a transform of another package is to be installed on both ends"
        ) from exc


def check_version(version: int) -> None:
    """Raise `HandshakeError` when the silo speaks another version of the protocol."""
    if version != PROTOCOL_VERSION:
        raise HandshakeError(
            f"protocol_version: the silo speaks {version}, the trunk"
            f" {PROTOCOL_VERSION}; install the same version of flower-split on both"
        )


def ticket_message(ticket: Ticket) -> pb.Ticket:
    """`ticket` as it travels.

    Raises:
        ValueError: a number of it is out of range.
    """
    return pb.Ticket(
        run_id=ticket.run_id,
        node_id=ticket.node_id,
        server_round=ticket.server_round,
        token=ticket.token,
    )


def purpose_number(purpose: Purpose) -> pb.Purpose:
    """`purpose` as it travels."""
    return _PURPOSES[purpose]


def read_purpose(number: int) -> Purpose:
    """The purpose that came as a number; `HandshakeError` where it is unknown."""
    if number not in _PURPOSE_NAMES:
        raise HandshakeError(f"purpose: unknown number {number}")
    return _PURPOSE_NAMES[number]


def read_ticket(message: pb.Hello | pb.DeliverRequest | AttestRequest) -> Ticket | None:
    """The ticket that a first message brought; None where it brought none.

    What is beyond the longest token is not even looked at: no such token was issued.
    """
    if not message.HasField("ticket"):
        return None
    return Ticket(
        run_id=message.ticket.run_id,
        node_id=message.ticket.node_id,
        server_round=message.ticket.server_round,
        token=message.ticket.token[: _LONGEST_TOKEN + 1],
    )


def _check_kept(hello: pb.Hello) -> None:
    """Raise `HandshakeError` unless the silo's name and the tags that it offers are in bounds."""
    if len(hello.silo) > LONGEST_SILO_NAME or not hello.silo.isprintable():
        raise HandshakeError(
            f"silo: a name is at most {LONGEST_SILO_NAME} printable characters; set `silo` in the "
            "node config"
        )
    tags = hello.session_states
    if len(tags) > MOST_OFFERS or not all(is_tag(tag) for tag in tags):
        raise HandshakeError(
            f"session_states: expected at most {MOST_OFFERS} tags of 64 hexadecimal digits"
        )


def welcome_frame(
    limits: SessionLimits, resumed: str = "", *, reconnect_seconds: float = 0.0
) -> pb.ServerFrame:
    """The trunk's answer to a Hello that it accepts.

    Args:
        limits: The trunk's bounds.
        resumed: Tag of the optimizer state from which both go on.
        reconnect_seconds: For which the session waits for another stream where its own broke.
    """
    welcome = pb.Welcome(
        max_in_flight=limits.max_in_flight,
        max_message_tokens=limits.max_message_tokens,
        max_cached_tokens=limits.max_cached_tokens,
        resumed=resumed,
        max_adapter_elements=limits.max_adapter_elements,
        reconnect_seconds=reconnect_seconds,
    )
    return pb.ServerFrame(welcome=welcome)


def read_welcome(welcome: pb.Welcome) -> SessionLimits:
    """The trunk's bounds, as a silo learns them.

    Raises:
        WireError: no session can keep to them; the state to resume from has no tag; the time for
            reconnecting is none.
    """
    for name in ("max_in_flight", "max_message_tokens", "max_cached_tokens"):
        if getattr(welcome, name) < 1:
            raise WireError(f"the trunk's {name} is {getattr(welcome, name)}, expected at least 1")
    if welcome.resumed and not is_tag(welcome.resumed):
        raise WireError("the trunk resumes from a state whose tag is none of 64 hexadecimal digits")
    if welcome.max_adapter_elements > MOST_ADAPTER_ELEMENTS:
        raise WireError(
            f"the trunk's adapter has {welcome.max_adapter_elements} numbers, expected at most "
            f"{MOST_ADAPTER_ELEMENTS}"
        )
    hold = welcome.reconnect_seconds
    if not (math.isfinite(hold) and 0 <= hold <= LONGEST_HOLD):
        raise WireError(f"the trunk holds a session {hold} s, expected 0 to {LONGEST_HOLD:g}")
    return SessionLimits(
        max_in_flight=welcome.max_in_flight,
        max_message_tokens=welcome.max_message_tokens,
        max_cached_tokens=welcome.max_cached_tokens,
        max_adapter_elements=welcome.max_adapter_elements,
    )
