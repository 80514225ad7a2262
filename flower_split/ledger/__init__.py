"""The ledger: an append-only, hash-chained account of what left a silo, without its content."""

from flower_split.ledger.book import Ledger
from flower_split.ledger.entries import Entry
from flower_split.ledger.reading import read_entries, verify

__all__ = ["Entry", "Ledger", "read_entries", "verify"]
