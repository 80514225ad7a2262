"""Bad rows: those that cannot be read or that hold no text. They end the reading, or are counted.

What of a file is broken as a whole (an encoding, a quote that is never closed) is no bad row.
"""

from flower_split.errors import DataError

STOP, SKIP = "stop", "skip"
NAMED = 5
"""Bad rows whose places are told; of the others the number alone."""


class BadRows:
    """What becomes of bad rows.

    Args:
        rule: `stop` raises the first one's error, `skip` counts it.
    """

    def __init__(self, rule: str = STOP) -> None:
        self._rule = rule
        self.count = 0
        """Rows that were left out."""
        self.places: list[str] = []
        """Where the first of them are, such as `line 4`."""
        self.first: DataError | None = None
        """What was wrong with the first."""
        self.file = ""
        """Which file of several is being read."""

    @property
    def skips(self) -> bool:
        """Whether bad rows are left out."""
        return self._rule == SKIP

    def take(self, error: DataError, mark: str, rows: int = 1) -> None:
        """Leave out `rows` at the place `mark`, or raise `error`."""
        if not self.skips:
            raise _advised(error)
        self.first = self.first or error
        self.count += rows
        if len(self.places) < NAMED:
            self.places.append(f"{self.file}, {mark}" if self.file else mark)

    def refuse_all(self, origin: str) -> DataError:
        """The error of a source of which no row is left."""
        why = "" if self.first is None else f"; the first one: {self.first}"
        return DataError(
            f"{origin}: all of its {self.count} rows are bad, and data.bad-rows is 'skip'{why}"
        )


def _advised(error: DataError) -> DataError:
    """The error with what can be done about such rows, where it says nothing of the kind."""
    text = str(error)
    if "data." in text:
        return error
    return DataError(f"{text}. Mend it, or set data.bad-rows to 'skip', which leaves such rows out")
