"""Row 7 under TLS, with tokens that are bound to certificates: a broken line is no lost round."""

from collections.abc import Callable

import pytest
from chaos_proxy import ChaosProxy, End, Way
from watched_trunk import STEPS, VICTIM, Mutual, Trained, withstood

Sent = Callable[[float, str], int]

PLACES = (0.03, 0.5, 0.97, 0.0, *(n / 60 for n in range(1, 60)))
"""Parts of a session's bytes, TLS's handshake among them."""
CUTS = [
    (at, way, kind)
    for at in PLACES
    for kind, way in (("reset", "up"), ("close", "down"), ("reset", "down"), ("close", "up"))
]


@pytest.fixture(scope="module")
def sent(mutual: Mutual) -> Sent:
    """Bytes of so large a part of a whole session, of one way."""
    trunk = mutual.trunk
    with ChaosProxy(trunk.server.address) as line:
        invited = trunk.invite(VICTIM, run=70)
        trunk.is_alone(invited, trunk.train(invited, line.address, tls=mutual.owner))
        passed = {"up": line.sent, "down": line.received}
    return lambda part, way: int(part * passed[way])


@pytest.mark.medium
@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize(("at", "way", "kind"), CUTS)
def test_row_07_a_line_under_tls_that_is_cut_costs_nothing(
    mutual: Mutual, sent: Sent, at: float, way: str, kind: End, caplog: pytest.LogCaptureFixture
) -> None:
    """What the session yields is the undisturbed one's to the bit, over a second line."""
    trunk, cut = mutual.trunk, Way(after=sent(at, way), then=kind)
    with (
        withstood(trunk, caplog) as fault,
        ChaosProxy(trunk.server.address, **{way: cut}) as line,
    ):
        invited = trunk.invite(VICTIM, run=71)
        assert fault.attempt(invited, line.address, tls=mutual.owner) is not None
        assert line.accepted >= 2


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["reset", "close"])
def test_row_07_a_line_under_tls_that_ends_between_two_steps(
    mutual: Mutual, kind: End, caplog: pytest.LogCaptureFixture
) -> None:
    trunk = mutual.trunk
    with withstood(trunk, caplog) as fault, ChaosProxy(trunk.server.address) as line:
        invited = trunk.invite(VICTIM, run=72)
        with trunk.connect(invited, line.address, tls=mutual.owner) as transport:
            got = trunk.make_step(transport, VICTIM, 0)
            line.cut(kind)
            for step in range(1, STEPS):
                got += trunk.make_step(transport, VICTIM, step)
            transport.finish()
            assert transport.reconnects == 1 and not fault.errors
        trunk.is_alone(invited, Trained(got))
