"""Choices: what a harness does, read off the bytes that a fuzzer makes."""

from collections.abc import Sequence
from typing import TypeVar

Option = TypeVar("Option")

NUMBERS = (
    *range(-3, 12),
    *(31, 32, 63, 64, 65, 127, 128, 255, 256, 1000, 4095, 4097, 65535, 65536),
    *(2**20, 2**20 + 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63)),
)
FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-3, 1e-12, 1e-30, 5e-324, 1e6, 1e15, 1.1e15, -1e15),
    *(1e30, 3e38, 1e39, 1.7e308, -1.7e308, float("inf"), float("-inf"), float("nan")),
)
TEXTS = (
    *("", "a", "x" * 64, "x" * 65, "x" * 257, "y" * 70000, "\n", "\x00", "\x7f", "é", "\U0001f600"),
    *("../../etc/passwd", "0" * 64, "f" * 63, "{}", "[]", "null", '{"r": 4}', '{"r": 1e400}'),
    *('{"alpha": NaN, "r": 2, "rslora": false}', "[" * 3000, "1" * 5000, "%s%n", "localhost:1"),
    *("[::1]:80", ":0", "host:99999", "train", "evaluate"),
)


class Choices:
    """Reads decisions off `data`; where it has run out, every number is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        if not self.more:
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1, out of as few bytes as that takes."""
        number, span = 0, 1
        while span < bound:
            number, span = number << 8 | self.byte(), span << 8
        return number % max(bound, 1)

    def of(self, options: Sequence[Option]) -> Option:
        return options[self.below(len(options))]

    def yes(self) -> bool:
        return bool(self.byte() & 1)

    def bytes(self, most: int) -> bytes:
        """Up to `most` bytes as they come."""
        size = min(self.below(most + 1), most)
        found = self._data[self._at : self._at + size]
        self._at += len(found)
        return found

    def rest(self) -> bytes:
        found, self._at = self._data[self._at :], len(self._data)
        return found

    def number(self) -> int:
        return self.of(NUMBERS) if self.yes() else self.byte()

    def float(self) -> float:
        return self.of(FLOATS) if self.yes() else (self.byte() - 128) / 16

    def text(self) -> str:
        return self.of(TEXTS) if self.yes() else self.bytes(16).decode("utf-8", "replace")
