"""Of one bound, no strategy can take the others' part."""

import pytest

from flower_split.control.shares import has_place, kept_places


def taken(owner, bound, owners, held=()):
    """How many places an owner gets that takes all it can."""
    has = {**dict(held), owner: 0}
    while has_place(owner, has, bound, owners):
        has[owner] += 1
    return has[owner]


@pytest.mark.parametrize(
    ("bound", "owners", "kept"),
    [(8, 2, 2), (64, 3, 10), (8, 8, 1), (2, 2, 1), (1, 2, 0), (8, 1, 4), (4, 0, 0)],
)
def test_half_of_a_bound_is_kept_in_equal_parts(bound, owners, kept):
    assert kept_places(bound, owners) == kept


@pytest.mark.parametrize("bound", [2, 3, 8, 64])
@pytest.mark.parametrize("owners", ["n", "ns", "nsw"])
def test_whoever_takes_all_it_can_leaves_the_others_their_part(bound, owners):
    first = taken("n", bound, owners)
    kept = kept_places(bound, len(owners))
    assert first == bound - kept * (len(owners) - 1)
    for other in owners[1:]:
        assert taken(other, bound, owners, {"n": first}) >= kept


def test_alone_or_unknown_a_strategy_has_what_nobody_is_kept():
    assert taken("", 8, ()) == 8
    assert taken("n", 8, "n") == 8
    assert taken("stranger", 8, "ns") == 4
    assert not has_place("n", {"s": 8}, 8, "ns")
