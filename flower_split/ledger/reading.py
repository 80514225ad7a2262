"""Reading a ledger: its entries in order, and whether the chain is whole."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flower_split.errors import LedgerError
from flower_split.ledger.book import ledger_files, read_head
from flower_split.ledger.entries import LONGEST, NOTHING, Entry, read_line
from flower_split.private_files import opened


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A ledger whose chain is whole."""

    entries: int
    """How many there are."""
    first: int
    """Number of the first; what was before it has been removed for its age."""
    hash: str
    """Of the last entry: whoever has noted it elsewhere knows that nothing before it changed."""
    kinds: dict[str, int]
    """Entries of each kind."""


def read_entries(folder: Path) -> Iterator[Entry]:
    """The entries of the ledger in `folder`, in their order, each checked against the one before.

    Raises:
        LedgerError: a line was changed, cut out, put elsewhere or is damaged; says which one.
    """
    files = ledger_files(folder)
    head = read_head(folder)
    if not files:
        if head is not None and head.entries:
            raise LedgerError(f"the files of the ledger in {folder} are gone")
        return
    wanted, previous = (0, NOTHING) if head is None else (head.first, head.before)
    for position, file in enumerate(files):
        with _read(file) as lines:
            for number, raw in enumerate(lines, start=1):
                half = not raw.endswith(b"\n") and len(raw) <= LONGEST
                last = half and position == len(files) - 1
                if last and (head is None or wanted >= head.entries):
                    return  # what a killed process was about to write
                where = f"{file.name}, line {number}"
                try:
                    entry = read_line(raw.rstrip(b"\n"))
                except LedgerError as error:
                    raise LedgerError(f"{where}: {error}") from error
                if entry.n != wanted:
                    raise LedgerError(f"{where}: entry {entry.n}, expected {wanted}")
                if entry.previous != previous:
                    raise LedgerError(
                        f"{where}: the entry before it is not the one that it was written after: "
                        f"entry {wanted - 1} was changed, or this one put here"
                    )
                yield entry
                wanted, previous = wanted + 1, entry.hash
                if head is not None and wanted == head.entries and previous != head.hash:
                    raise LedgerError(f"{where}: it is not the entry {entry.n} that was committed")
    if head is not None and wanted < head.entries:
        raise LedgerError(
            f"the ledger in {folder} ends with entry {wanted - 1}, and entry {head.entries - 1} "
            "had been committed: its end was cut off"
        )


@contextmanager
def _read(file: Path) -> Iterator[Iterator[bytes]]:
    """The lines of a file, each cut off where it is longer than any of ours."""
    try:
        with opened(file) as held:
            yield iter(lambda: held.readline(LONGEST + 2), b"")
    except OSError as error:
        raise LedgerError(f"{file} cannot be read: {error.strerror}") from error


def verify(folder: Path) -> Verified:
    """Check the whole ledger in `folder`.

    Raises:
        LedgerError: there is none, or its chain is broken; says where.
    """
    if not ledger_files(folder):
        raise LedgerError(f"there is no ledger in {folder}")
    kinds = Counter[str]()
    first, last = -1, NOTHING
    for entry in read_entries(folder):
        first = entry.n if first < 0 else first
        last = entry.hash
        kinds[str(entry.fields.get("kind", ""))] += 1
    return Verified(entries=sum(kinds.values()), first=max(first, 0), hash=last, kinds=dict(kinds))
