"""Rows 13 to 16: tokens that are replayed, stolen, late or forged."""

import datetime
import hmac
import time
from dataclasses import replace

import grpc
import pytest
from certificates import now
from hosting import eventually
from watched_trunk import (
    NEIGHBOUR,
    VICTIM,
    Invited,
    Mutual,
    WatchedTrunk,
    watched_trunk,
    withstood,
)

from flower_split.errors import ForeignRunError, TokenError, TrunkError
from flower_split.server.tickets import TicketBook
from flower_split.tls import ClientTls, ServerTls
from flower_split.tls.ephemeral import make_identity
from flower_split.transport.messages import Ticket


def code(error: BaseException) -> grpc.StatusCode:
    """The status that the trunk sent."""
    cause = error.__cause__
    assert isinstance(cause, grpc.Call), repr(cause)
    found: grpc.StatusCode = cause.code()
    return found


@pytest.mark.medium
def test_row_13_a_replayed_token(trunk: WatchedTrunk, caplog: pytest.LogCaptureFixture) -> None:
    """While its session is open, and after it was finished; the session itself goes on."""
    with withstood(trunk, caplog) as fault:
        invited = trunk.invite(VICTIM)
        with trunk.connect(invited) as transport:
            error = fault.refused(lambda: trunk.connect(invited), TokenError)
            assert code(error) is grpc.StatusCode.UNAUTHENTICATED
            trunk.make_step(transport, VICTIM, 0)
            transport.finish()
        error = fault.refused(lambda: trunk.connect(invited), TokenError)
        assert code(error) is grpc.StatusCode.UNAUTHENTICATED
        outcome = invited.record.collect()
        assert outcome is not None and outcome.summary.steps == 1


@pytest.mark.medium
def test_row_14_a_stolen_token_with_another_certificate(
    mutual: Mutual, caplog: pytest.LogCaptureFixture
) -> None:
    """A node's certificate is that of its first session; a token is not good with another one."""
    trunk, run = mutual.trunk, 14
    with withstood(trunk, caplog) as fault:
        trunk.connect(trunk.invite(VICTIM, run=run), tls=mutual.owner).close()
        stolen = trunk.invite(VICTIM, run=run, server_round=2)
        for _ in range(2):
            error = fault.refused(lambda: trunk.connect(stolen, tls=mutual.thief), ForeignRunError)
            assert code(error) is grpc.StatusCode.PERMISSION_DENIED
        assert f"node {VICTIM} came with another certificate" in caplog.text
        # The token is not burnt: its owner trains with it, and to the bit as ever.
        assert fault.attempt(stolen, tls=mutual.owner) is not None
        # Another run begins anew, as does the run of whom the thief is a silo itself.
        trunk.connect(trunk.invite(VICTIM, run=run + 1), tls=mutual.thief).close()


@pytest.mark.medium
def test_row_14_a_token_that_its_thief_uses_first_is_not_its_owners_any_more(
    mutual: Mutual, caplog: pytest.LogCaptureFixture
) -> None:
    """The theft of a node's first token of a run is loud: its owner is refused, and says so."""
    trunk = mutual.trunk
    with withstood(trunk, caplog) as fault:
        first = trunk.invite(VICTIM, run=24)
        trunk.connect(first, tls=mutual.thief).close()
        fault.refused(lambda: trunk.connect(first, tls=mutual.owner), TokenError)
        later = trunk.invite(VICTIM, run=24, server_round=2)
        error = fault.refused(lambda: trunk.connect(later, tls=mutual.owner), ForeignRunError)
        assert code(error) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.medium
def test_row_15_a_token_that_expires_mid_stream(caplog: pytest.LogCaptureFixture) -> None:
    """No request begins after that time, and none that has begun is left in halves."""
    clock = [0.0]
    with watched_trunk(clock=lambda: clock[0]) as trunk, withstood(trunk, caplog) as fault:
        invited = trunk.invite(VICTIM, seconds=600.0)
        with trunk.connect(invited) as transport:
            trunk.make_step(transport, VICTIM, 0)
            clock[0] = 599.9
            trunk.make_step(transport, VICTIM, 1)
            clock[0] = 600.0
            error = fault.refused(lambda: trunk.make_step(transport, VICTIM, 2), TokenError)
            assert code(error) is grpc.StatusCode.UNAUTHENTICATED
        assert eventually(lambda: invited.record.is_broken)
        assert invited.record.collect() is None  # nothing of it counts


@pytest.mark.medium
def test_row_15_an_idle_session_ends_with_its_token(caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    with watched_trunk(clock=lambda: clock[0]) as trunk, withstood(trunk, caplog) as fault:
        invited = trunk.invite(VICTIM, seconds=600.0)
        with trunk.connect(invited) as transport:
            open_ones = trunk.server.num_sessions
            clock[0] = 600.0
            assert eventually(lambda: trunk.server.num_sessions < open_ones)
            fault.refused(lambda: trunk.make_step(transport, VICTIM, 0), TokenError)


@pytest.mark.medium
@pytest.mark.parametrize("minutes", [-10, 10])
def test_row_15_clocks_that_differ(
    minutes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No time of day is compared but a certificate's, and that allows for a day.

    The trunk's clock was so far from the silo's when it made its certificate, and jumps back.
    """
    skew, real = datetime.timedelta(minutes=minutes), time.time
    certificate, key, ca = make_identity(("127.0.0.1",), now=now() + skew)
    tls = ServerTls(certificate=certificate, private_key=key, ca=ca)
    with watched_trunk(tls=tls, trust=ClientTls(ca=ca)) as trunk, withstood(trunk, caplog) as fault:
        invited = trunk.invite(VICTIM, seconds=60.0)
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: real() + skew.total_seconds())
            assert fault.attempt(invited) is not None


def forgeries(ticket: Ticket, known: Ticket) -> dict[type[TrunkError], list[Ticket]]:
    """Tickets that were never issued, by how they are refused; `known` is of another run."""
    strange = TicketBook().issue(ticket.run_id, ticket.node_id, 1, "train").token
    return {
        ForeignRunError: [
            replace(ticket, run_id=known.run_id),  # of a run that there is
            replace(ticket, run_id=9999),
            replace(ticket, node_id=NEIGHBOUR),
            replace(ticket, node_id=9999),
            replace(ticket, server_round=9999),
        ],
        TokenError: [
            replace(ticket, token="x" * 43),
            replace(ticket, token="x" * 43, run_id=9999),
            replace(ticket, token=strange),
            replace(ticket, token=strange, run_id=known.run_id),
        ],
    }


@pytest.mark.medium
def test_row_16_a_client_of_another_run_or_with_a_forged_id(
    trunk: WatchedTrunk, caplog: pytest.LogCaptureFixture
) -> None:
    """One text for each code, whether what is claimed exists or not."""
    codes = {ForeignRunError: "PERMISSION_DENIED", TokenError: "UNAUTHENTICATED"}
    with withstood(trunk, caplog) as fault:
        known, invited = trunk.invite(VICTIM, run=51), trunk.invite(VICTIM, run=52)
        for kind, tickets in forgeries(invited.ticket, known.ticket).items():
            told = set[str]()
            for ticket in tickets:
                forged = Invited(ticket, invited.record)
                error = fault.refused(lambda forged=forged: trunk.connect(forged), kind)
                assert code(error).name == codes[kind]
                told.add(str(error))
            assert len(told) == 1
        assert fault.attempt(invited) is not None  # guesses have not burnt the token


def test_row_16_as_many_comparisons_whatever_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the time of an answer tells nothing of what exists."""
    book, compare, compared = TicketBook(), hmac.compare_digest, list[int]()

    def counting(a: bytes, b: bytes) -> bool:
        compared[-1] += 1
        return compare(a, b)

    known, ticket, *_ = [book.issue(run, VICTIM, 1, "train") for run in range(51, 61)]
    monkeypatch.setattr(hmac, "compare_digest", counting)
    for kind, tickets in forgeries(ticket, known).items():
        for forged in tickets:
            compared.append(0)
            with pytest.raises(kind):
                book.verify(forged, "train")
    assert set(compared) == {10}
