"""How many records of a kind a Flower message must hold: one rule for both of its ends."""

from collections.abc import Mapping, Sized


def miscounted(holder: str, records: Mapping[str, Sized]) -> str:
    """What is wrong unless there is exactly one record of each kind; empty when there is.

    Args:
        holder: What holds them, for the text.
        records: The records that were found, by name of their kind.
    """
    if all(len(found) == 1 for found in records.values()):
        return ""
    counts = " and ".join(f"{len(found)} {kind}s" for kind, found in records.items())
    each = "one of each" if len(records) > 1 else "one"
    return f"{holder} has {counts}, expected exactly {each}"
