"""Shares: of what several strategies take from one bound, none can take the others' part.

Half of the bound is kept for them in equal parts, at least one place each where there are as many.
The other half is for whoever comes first.
"""

from collections.abc import Collection, Mapping


def has_place(owner: str, held: Mapping[str, int], bound: int, owners: Collection[str]) -> bool:
    """Whether an owner may take one more place.

    Args:
        owner: Who asks.
        held: Places that each owner has.
        bound: Places in all.
        owners: All that may come; one that is not among them has nothing kept.
    """
    free = bound - sum(held.values())
    known = frozenset(owners)
    kept = kept_places(bound, len(known))
    if owner in known and held.get(owner, 0) < kept:
        return free > 0
    others = sum(max(0, kept - held.get(other, 0)) for other in known - {owner})
    return free > others


def kept_places(bound: int, owners: int) -> int:
    """Places that are kept for each of so many."""
    if owners < 1 or bound < owners:
        return 0
    return max(1, bound // (2 * owners))
