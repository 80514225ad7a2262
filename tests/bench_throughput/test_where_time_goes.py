"""The parts of a step, at toy size."""

import pytest
import where_time_goes


@pytest.mark.exhaustive
def test_it_accounts_for_both_parties(bench) -> None:
    found = where_time_goes.account(bench, toy=True).figures["seconds"]
    assert list(found) == ["1 in flight", "4 in flight"]
    for parts in found.values():
        assert parts["whole step"] > 0
        for party in ("silo", "trunk"):
            assert all(parts[party][kind] > 0 for kind in where_time_goes.WORK)
