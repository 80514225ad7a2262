"""Tickets open one session each, for whom they were issued, until they are revoked."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from flower_split.errors import ForeignRunError, TokenError
from flower_split.server.tickets import TicketBook
from flower_split.transport.messages import Ticket

NOT_VALID = "^no session without a valid token: it is missing, unknown, used or expired"
FOREIGN = "^the token was issued for another run, node, round or purpose, or its node has shown"


@pytest.fixture
def book() -> TicketBook:
    return TicketBook()


@pytest.fixture
def ticket(book: TicketBook) -> Ticket:
    return book.issue(1, 2, 3, "train")


def test_a_ticket_opens_one_session(book: TicketBook, ticket: Ticket) -> None:
    book.claim(ticket, "train")
    book.check(ticket)
    with pytest.raises(TokenError, match=NOT_VALID):
        book.claim(ticket, "train")
    book.check(ticket)
    book.spend(ticket)
    with pytest.raises(TokenError, match=NOT_VALID):
        book.claim(ticket, "train")
    with pytest.raises(TokenError, match="expired"):
        book.check(ticket)


def test_a_ticket_names_its_holder(ticket: Ticket) -> None:
    assert (ticket.run_id, ticket.node_id, ticket.server_round) == (1, 2, 3)
    assert len(ticket.token) >= 43  # 32 random bytes in base64


def test_tokens_are_not_kept(book: TicketBook, ticket: Ticket) -> None:
    assert ticket.token not in repr(vars(book))


def test_every_ticket_has_a_token_of_its_own(book: TicketBook) -> None:
    tokens = {book.issue(1, node, 1, "train").token for node in range(50)}
    assert len(tokens) == 50


@pytest.mark.parametrize("token", ["", "guess", "a" * 43])
def test_an_unknown_token_is_refused(book: TicketBook, ticket: Ticket, token: str) -> None:
    with pytest.raises(TokenError):
        book.claim(replace(ticket, token=token), "train")
    book.claim(ticket, "train")


def test_no_ticket_is_refused(book: TicketBook) -> None:
    with pytest.raises(TokenError, match=NOT_VALID):
        book.claim(None, "train")
    with pytest.raises(TokenError):
        book.check(None)
    book.spend(None)


@pytest.mark.parametrize("field", ["run_id", "node_id", "server_round"])
def test_a_token_of_another_holder_is_refused_and_stays_good(
    book: TicketBook, ticket: Ticket, field: str
) -> None:
    with pytest.raises(ForeignRunError, match=FOREIGN):
        book.claim(replace(ticket, **{field: 9}), "train")
    book.claim(ticket, "train")


def test_a_token_of_another_purpose_is_refused(book: TicketBook, ticket: Ticket) -> None:
    with pytest.raises(ForeignRunError, match=FOREIGN):
        book.claim(ticket, "evaluate")
    book.claim(book.issue(1, 2, 4), "evaluate")
    book.claim(book.issue(1, 2, 5), "train")


def shown(ticket: Ticket, certificate: str) -> Ticket:
    return replace(ticket, certificate=certificate)


def test_a_nodes_certificate_is_that_of_its_first_session_of_the_run(
    book: TicketBook, ticket: Ticket, caplog: pytest.LogCaptureFixture
) -> None:
    later, delivery = book.issue(1, 2, 4, "train"), book.issue(1, 2, 3, "deliver")
    book.verify(shown(ticket, "b"), "train")  # which binds nothing
    book.claim(shown(ticket, "a"), "train")
    for one, purpose in ((later, "train"), (delivery, "deliver")):
        for certificate in ("b", ""):
            for refuse in (book.verify, book.claim):
                with pytest.raises(ForeignRunError, match=FOREIGN):
                    refuse(shown(one, certificate), purpose)  # type: ignore[arg-type]
    assert "node 2 came with another certificate" in caplog.text
    assert later.token not in caplog.text
    book.claim(shown(later, "a"), "train")
    book.claim(shown(delivery, "a"), "deliver")


def test_other_nodes_and_other_runs_have_certificates_of_their_own(
    book: TicketBook, ticket: Ticket
) -> None:
    book.claim(shown(ticket, "a"), "train")
    book.claim(shown(book.issue(1, 3, 3, "train"), "b"), "train")
    book.claim(shown(book.issue(2, 2, 3, "train"), "c"), "train")
    book.claim(shown(book.issue(1, 4, 3, "train"), "a"), "train")  # silos may share one


def test_issuing_again_revokes_the_former_ticket(book: TicketBook, ticket: Ticket) -> None:
    other = book.issue(1, 2, 3, "evaluate")
    again = book.issue(1, 2, 3, "train")
    with pytest.raises(TokenError, match=NOT_VALID):
        book.claim(ticket, "train")
    book.claim(again, "train")
    book.claim(other, "evaluate")


def test_revoking_ends_an_open_session(book: TicketBook, ticket: Ticket) -> None:
    book.claim(ticket, "train")
    book.revoke(ticket)
    with pytest.raises(TokenError, match="expired"):
        book.check(ticket)
    with pytest.raises(TokenError, match=NOT_VALID):
        book.claim(ticket, "train")
    book.spend(ticket)
    book.revoke(ticket)


def test_the_end_of_a_round_ends_its_tickets_and_earlier_ones(book: TicketBook) -> None:
    first, second, third = (book.issue(1, 2, number, "train") for number in (1, 2, 3))
    book.end_round(2)
    for ticket in (first, second):
        with pytest.raises(TokenError, match=NOT_VALID):
            book.claim(ticket, "train")
    book.claim(third, "train")


def test_two_claims_at_once_open_one_session(book: TicketBook) -> None:
    def claims(ticket: Ticket) -> bool:
        try:
            book.claim(ticket, "train")
        except TokenError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            ticket = book.issue(1, 2, number, "train")
            assert sum(pool.map(claims, [ticket] * 8)) == 1


def test_a_ticket_expires_and_so_does_its_session() -> None:
    time = [0.0]
    book = TicketBook(clock=lambda: time[0])
    early, late = (book.issue(1, node, 3, "train", seconds=10.0) for node in (1, 2))
    time[0] = 9.9
    book.claim(early, "train")
    book.check(early)
    time[0] = 10.0
    with pytest.raises(TokenError, match="expired"):
        book.check(early)
    for refuse in (book.verify, book.claim):
        with pytest.raises(TokenError, match=NOT_VALID):
            refuse(late, "train")
    book.issue(1, 3, 3, "train")
    assert len(vars(book)["_entries"]) == 1  # expired ones are forgotten


def test_verifying_changes_nothing_and_says_what_claiming_would(
    book: TicketBook, ticket: Ticket
) -> None:
    for _ in range(3):
        book.verify(ticket, "train")
    for wrong, purpose, kind in (
        (None, "train", TokenError),
        (replace(ticket, token="guess"), "train", TokenError),
        (replace(ticket, run_id=9), "train", ForeignRunError),
        (ticket, "evaluate", ForeignRunError),
    ):
        with pytest.raises(kind):
            book.verify(wrong, purpose)  # type: ignore[arg-type]
    book.claim(ticket, "train")
    with pytest.raises(TokenError):
        book.verify(ticket, "train")


def test_every_refusal_of_a_token_has_one_wording(book: TicketBook, ticket: Ticket) -> None:
    book.claim(ticket, "train")
    revoked = book.issue(1, 2, 4, "train")
    book.revoke(revoked)
    said = set()
    for wrong in (None, ticket, revoked, replace(ticket, token=""), replace(ticket, token="guess")):
        with pytest.raises(TokenError) as caught:
            book.claim(wrong, "train")
        said.add(str(caught.value))
    assert len(said) == 1
