"""The table of codecs: by their name in a configuration and by their number on the wire."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from flower_split.compression.codec import PRIVATE_NUMBERS, Codec
from flower_split.config.wire import CODEC_CLASSES, CODEC_GROUP
from flower_split.errors import ConfigError, WireError
from flower_split.plugins import PluginTable, load_named
from flower_split.proto import trunk_pb2 as pb


class CodecTable(PluginTable[Codec]):
    """Our codecs and, after them, those that other packages registered.

    Args:
        own: Codecs whose names and numbers no plug-in may take.
    """

    def __init__(self, own: Mapping[str, Codec]) -> None:
        super().__init__(CODEC_GROUP, own, key="wire codec", noun="codec")
        self._by_number = {codec.wire: codec for codec in own.values()}

    def checked(self, name: str, loaded: Any, packages: str) -> Codec:
        """An instance of the class that the package registered."""
        what = f"wire codec {name!r} of {packages}"
        if not (inspect.isclass(loaded) and issubclass(loaded, Codec)):
            raise ConfigError(f"{what} is {loaded!r}, expected a class of flower_split's Codec")
        try:
            codec = loaded()
        except Exception as error:
            raise ConfigError(f"{what} cannot be made: {type(error).__name__}: {error}") from error
        found = getattr(codec, "name", None), getattr(codec, "wire", None)
        if found[0] != name:
            raise ConfigError(f"{what} calls itself {found[0]!r}: name it alike in both places")
        if not isinstance(found[1], int) or not PRIVATE_NUMBERS <= found[1] < 1 << 31:
            raise ConfigError(
                f"{what} has the number {found[1]!r} on the wire, expected one from "
                f"{PRIVATE_NUMBERS} to {(1 << 31) - 1}"
            )
        return codec

    def named(self, name: str) -> Codec:
        """The codec of a configuration's name.

        Raises:
            ConfigError: there is none of that name, it is of no use, or another one has its number.
        """
        if name not in self:
            raise ConfigError(f"codec must be one of {', '.join(self)}, not {name!r}")
        codec = self[name]
        return codec if codec.wire in self._by_number else self.numbered(codec.wire)

    def numbered(self, number: int) -> Codec:
        """The codec of a number on the wire.

        Raises:
            ConfigError: there is none of that number, or several.
        """
        if number in self._by_number:
            return self._by_number[number]
        found, broken = list[Codec](), list[str]()
        for name in self.plugins if number >= PRIVATE_NUMBERS else ():
            try:
                codec = self[name]
            except ConfigError as error:
                broken.append(str(error))
                continue
            if codec.wire == number:
                found.append(codec)
        if len(found) > 1:
            names = " and ".join(repr(codec.name) for codec in found)
            raise ConfigError(
                f"codecs {names} both have the number {number} on the wire: uninstall all but one"
            )
        if not found:
            raise ConfigError("; ".join([f"unknown codec number {number}", *broken]))
        return found[0]


def check_complete(rows: Sequence[Codec]) -> None:
    """Raise `ImportError` unless `rows` have every name and number of ours once."""
    names = [codec.name for codec in rows]
    if sorted(names) != sorted(CODEC_CLASSES):
        raise ImportError(f"codecs {sorted(names)} differ from the rows {sorted(CODEC_CLASSES)}")
    on_wire = set(pb.Codec.values()) - {pb.CODEC_UNSPECIFIED, pb.CODEC_RAW}
    numbers = [int(codec.wire) for codec in rows]
    if sorted(numbers) != sorted(on_wire):
        raise ImportError(f"codec numbers {sorted(numbers)} differ from the wire's {on_wire}")


def _own() -> dict[str, Codec]:
    rows: dict[str, Codec] = {name: kind() for name, kind in load_named(CODEC_CLASSES).items()}
    check_complete(list(rows.values()))
    return rows


CODEC_TABLE = CodecTable(_own())


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
