"""The trunk that faults are done to."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from attack import Attack
from certificates import signed
from watched_trunk import VICTIM, Mutual, WatchedTrunk, watched_trunk, withstood

from flower_split.tls import ClientTls, ServerTls


@pytest.fixture(scope="module")
def trunk() -> Iterator[WatchedTrunk]:
    """Of the tests of a file that need no other one."""
    with watched_trunk() as served:
        yield served


@pytest.fixture(scope="module")
def mutual() -> Iterator[Mutual]:
    silos_ca, silos = signed("neighbour", "owner", "thief")
    tls = ServerTls.ephemeral(client_ca=silos_ca)
    neighbour, owner, thief = (
        ClientTls(ca=tls.ca, certificate=certificate, private_key=key) for certificate, key in silos
    )
    with watched_trunk(tls=tls, trust=neighbour) as served:
        yield Mutual(served, owner, thief)


@pytest.fixture
def attack(trunk: WatchedTrunk, caplog: pytest.LogCaptureFixture) -> Iterator[Attack]:
    """Every invariant is checked after the test."""
    with withstood(trunk, caplog) as fault:
        yield Attack(fault, replace(trunk.engine.describe(), seed=VICTIM, silo=f"silo-{VICTIM}"))
