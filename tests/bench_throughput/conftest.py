"""The benchmark's parties at toy size, which take seconds to start."""

import pytest
from throughput.parties import open_bench
from throughput.shapes import TOY


@pytest.fixture(scope="session")
def bench():
    with open_bench(TOY) as bench:
        yield bench
