"""The trunk that faults are done to."""

from collections.abc import Iterator

import pytest
from watched_trunk import WatchedTrunk, watched_trunk


@pytest.fixture(scope="module")
def trunk() -> Iterator[WatchedTrunk]:
    """Of the tests of a file that need no other one."""
    with watched_trunk() as served:
        yield served
