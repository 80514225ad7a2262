"""Text of tokens as they come, in pieces that later tokens leave as they are."""

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to


class TextPieces:
    """Decodes an answer token by token.

    All pieces together are the text that the tokenizer makes of all tokens at once, up to the
    first stop text.

    Args:
        decode: Text of token ids.
        before: Last ids of the prompt, where the answer goes on in the midst of a text.
        stop: Texts that end the answer and are no part of it.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        before: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> None:
        self._decode = decode
        self._ids = [*before]
        self._start = len(decode(self._ids)) if before else 0
        self._stop = tuple(stop)
        self._sent = 0
        self.text = ""
        """The answer as far as it has come."""
        self.is_stopped = False
        """Whether a stop text has come."""

    def add(self, ids: Sequence[int]) -> str:
        """The piece that is certain with these tokens; may be empty."""
        if self.is_stopped:
            return ""
        self._ids += ids
        self.text = self._decode(self._ids)[self._start :]
        if found := [at for one in self._stop if (at := self.text.find(one)) >= 0]:
            self.is_stopped = True
            self.text = self.text[: min(found)]
            return self._upto(len(self.text))
        if self.text.endswith(_INCOMPLETE):
            return ""
        return self._upto(len(self.text) - self._held_back())

    def end(self) -> str:
        """What is left."""
        return self._upto(len(self.text))

    def _held_back(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(one.startswith(self.text[-size:]) for one in self._stop):
                return size
        return 0

    def _upto(self, end: int) -> str:
        piece = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece
