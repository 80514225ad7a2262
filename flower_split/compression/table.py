"""The table of codecs: by their name in a configuration and by their number on the wire."""

from collections.abc import Sequence

from torch import Tensor

from flower_split.compression.codec import Codec
from flower_split.compression.floats import Bf16, Fp16, Fp32
from flower_split.compression.int8 import Int8
from flower_split.compression.nf4 import Nf4
from flower_split.config.sections import CODECS
from flower_split.errors import ConfigError, WireError
from flower_split.proto import trunk_pb2 as pb

_ROWS: tuple[Codec, ...] = (Fp32(), Bf16(), Fp16(), Int8(), Nf4())

BY_NAME: dict[str, Codec] = {codec.name: codec for codec in _ROWS}
BY_WIRE: dict[int, Codec] = {int(codec.wire): codec for codec in _ROWS}


def check_complete(rows: Sequence[Codec]) -> None:
    """Raise `ImportError` unless `rows` have every configured name and wire number once."""
    names = [codec.name for codec in rows]
    if sorted(names) != sorted(CODECS):
        raise ImportError(f"codecs {sorted(names)} differ from the configuration's {CODECS}")
    on_wire = set(pb.Codec.values()) - {pb.CODEC_UNSPECIFIED, pb.CODEC_RAW}
    numbers = [int(codec.wire) for codec in rows]
    if sorted(numbers) != sorted(on_wire):
        raise ImportError(f"codec numbers {sorted(numbers)} differ from the wire's {on_wire}")


check_complete(_ROWS)


def codec_named(name: str) -> Codec:
    """The codec of a configuration's name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in BY_NAME:
        raise ConfigError(f"codec must be one of {', '.join(BY_NAME)}, not {name!r}")
    return BY_NAME[name]


def round_trip(tensor: Tensor, codec: Codec, name: str = "tensor") -> Tensor:
    """What the other end of a wire would hold of `tensor`: same shape, dtype and device.

    The result is detached and may share memory with `tensor`.

    Raises:
        WireError: `tensor` holds values that `codec` does not carry; says `name`.
    """
    try:
        received = codec.decode(codec.encode(tensor), tensor.shape, tensor.dtype)
    except WireError as exc:
        raise WireError(f"{name}: {exc}") from exc
    return received.to(tensor.device)
