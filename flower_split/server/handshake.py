"""The handshake: whether what a silo brings fits the trunk, and which adapter the silo has."""

import json
from collections.abc import Collection
from dataclasses import asdict, fields

from flower_split.compression.table import CODEC_TABLE
from flower_split.config.wire import HOPS, WireConfig
from flower_split.errors import AdapterError, HandshakeError
from flower_split.lowrank import Allowance, Scaling, scaling_from_fields
from flower_split.segments import Trunk
from flower_split.server.key_shapes import key_shape
from flower_split.transforms.table import TRANSFORM_TABLE
from flower_split.transport.messages import SessionLimits, SessionSpec

ALWAYS_FREE = frozenset({"purpose", "seed", "silo", "session_states"})
"""Fields that are the silo's own affair."""
_SETTINGS = frozenset({"wire", "optimizer", "privacy"})


def check_wire(wire: WireConfig) -> None:
    """Raise `ConfigError` where a codec or transform that another package adds is of no use."""
    for hop in HOPS:
        CODEC_TABLE.named(getattr(wire, hop))
    for name in wire.transforms:
        TRANSFORM_TABLE[name]


def check_spec(
    ours: SessionSpec,
    theirs: SessionSpec,
    *,
    free: Collection[str] = (),
    allowance: Allowance | None = None,
) -> Scaling | None:
    """The scaling of the adapter that a silo tells; None where it tells none, or where the method
    is not plain LoRA.

    Args:
        ours: What the trunk's own silo would bring; without an adapter for a frozen trunk, which
            learns from the silo's only its scaling.
        theirs: What the silo brings.
        free: Further fields that the silo may choose.
        allowance: Which rank and alpha its adapter may have; None for the trunk's own.

    Raises:
        HandshakeError: naming the first field in which the two differ and must not.
    """
    adapter_is_free = not ours.adapter or (allowance is not None and bool(theirs.adapter))
    for field in fields(SessionSpec):
        name = field.name
        own, other = getattr(ours, name), getattr(theirs, name)
        if name in ALWAYS_FREE or name in free or own == other:
            continue
        if name == "adapter" and adapter_is_free:
            continue
        if name in _SETTINGS:
            name, own, other = _first_difference(name, asdict(own), asdict(other))
        elif name == "adapter" and own and other:
            name, own, other = _first_difference(name, _fields_of(own), _fields_of(other))
        raise _differing(name, own, other)
    if not theirs.adapter:
        return None
    told = _fields_of(theirs.adapter)
    scaling = _allowed(told, allowance)
    if ours.adapter:
        own_rest, rest = ({**f, "r": 0, "alpha": 0} for f in (_fields_of(ours.adapter), told))
        if own_rest != rest:
            raise _differing(*_first_difference("adapter", own_rest, rest))
    return scaling


def check_prefix(spec: SessionSpec, trunk: Trunk, limits: SessionLimits) -> int:
    """Width of the prefix that a session asks for: heads x head size of the trunk's keys.

    To be called where the trunk computes.

    Raises:
        HandshakeError: this trunk, or this session, takes none; says why.
    """
    check_takes_prefix(spec)
    try:
        heads, size = key_shape(trunk)
    except ValueError as error:
        raise HandshakeError(
            f"prefix_tokens: the layers of this {trunk.config.model_type} trunk take no prefix, "
            f"{error}: use prompt tuning"
        ) from error
    width = heads * size
    check_prefix_size(spec, limits, len(trunk.cuts.trunk_range), width, trunk.hidden_size)
    return width


def check_takes_prefix(spec: SessionSpec) -> None:
    """Raise `HandshakeError` where a session like this takes no prefix, whatever its trunk."""
    if spec.trunk_adapters != "frozen":
        raise HandshakeError(
            f"prefix_tokens: a trunk whose adapters are {spec.trunk_adapters!r} takes no prefix; "
            "set trunk.adapters to 'frozen'"
        )
    if spec.wire.transforms:
        raise HandshakeError(
            f"prefix_tokens: the transforms {', '.join(spec.wire.transforms)} change the four hops "
            "alone, and a prefix would pass them by: leave wire.transforms empty, or use prompt "
            "tuning"
        )


def check_prefix_size(
    spec: SessionSpec, limits: SessionLimits, layers: int, width: int, hidden_size: int
) -> None:
    """Raise `HandshakeError` where a session's prefix is more than a message may be.

    Args:
        spec: The session's.
        limits: Its bounds.
        layers: Of the trunk.
        width: Of their keys, over all heads.
        hidden_size: H.
    """
    elements = 2 * layers * spec.prefix_tokens * width
    most = limits.max_message_tokens
    if spec.prefix_tokens >= most or elements > most * hidden_size:
        raise HandshakeError(
            f"prefix_tokens: {spec.prefix_tokens} for {layers} layers are {elements} numbers, and "
            f"the trunk takes at most {most} tokens of {hidden_size}: lower "
            "peft.num-virtual-tokens, or raise trunk.max-message-tokens"
        )


def _allowed(told: dict[str, object], allowance: Allowance | None) -> Scaling | None:
    try:
        scaling = None if "method" in told else scaling_from_fields(told)
    except AdapterError as error:
        raise HandshakeError(f"adapter: {error}") from error
    problem = "" if allowance is None else allowance.problem(scaling)
    if problem:
        raise HandshakeError(f"adapter: {problem}")
    return scaling


def _differing(name: str, ours: object, theirs: object) -> HandshakeError:
    meaning = "it is of config.json and quantization, and " if name == "fingerprint" else ""
    return HandshakeError(
        f"the silo and the trunk differ in {name}: {meaning}the trunk has {_short(ours)}, the silo "
        f"{_short(theirs)}. Start both from the same run configuration and model"
    )


def _first_difference(
    name: str, ours: dict[str, object], theirs: dict[str, object]
) -> tuple[str, object, object]:
    for key, own in ours.items():
        other = theirs.get(key)
        if own != other:
            return f"{name}.{key}", own, other
    return name, "these settings", f"further settings {sorted(theirs.keys() - ours.keys())}"


def _fields_of(text: str) -> dict[str, object]:
    try:
        fields_found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return fields_found if isinstance(fields_found, dict) else {}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
