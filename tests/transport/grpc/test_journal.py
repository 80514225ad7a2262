"""The journal of a silo's requests: what is sent once more, and what is known to be taken."""

import threading
from concurrent.futures import Future
from typing import Any

import pytest
from affine_backend import backward, forward, spec

from flower_split.errors import WireError
from flower_split.transport.grpc.journal import RequestJournal
from flower_split.transport.grpc.requests import encode_request
from flower_split.transport.grpc.resuming import START, digest_after
from flower_split.transport.messages import Answerable, Finish, Release
from flower_split.transport.rules import HopRules

RULES = HopRules(spec())


def ask(journal: RequestJournal, request: Answerable) -> Future[Any]:
    future: Future[Any] = Future()
    journal.add(request, (request, future))
    return future


def send(journal: RequestJournal, stream: int = 0, counted: list[int] | None = None) -> int:
    """The number of the next request, which is sent."""
    entry = journal.next(stream)
    assert entry is not None
    head = encode_request(entry.request, RULES).head
    before = entry.number
    assert journal.note_sent(stream, entry, head, lambda: (counted or []).append(before))
    return entry.number


@pytest.fixture
def journal() -> RequestJournal:
    """Two passes and a release, which stream 0 has sent."""
    journal = RequestJournal()
    journal.begin(0)
    ask(journal, forward(0))
    journal.add(Release(microbatch=0))
    ask(journal, forward(1))
    assert [send(journal) for _ in range(3)] == [0, 1, 2]
    return journal


def test_a_stream_goes_on_with_what_was_not_taken(journal: RequestJournal) -> None:
    for taken in (0, 1, 2, 3):
        journal.begin(taken + 1, taken)
        assert [send(journal, taken + 1) for _ in range(3 - taken)] == list(range(taken, 3))


def test_a_trunk_does_not_forget_what_it_has_taken(journal: RequestJournal) -> None:
    journal.begin(1, 2)
    with pytest.raises(WireError, match="has taken 1 requests, expected 2 to 3"):
        journal.begin(2, 1)


@pytest.mark.parametrize("taken", [4, 2**40])
def test_a_trunk_cannot_have_taken_what_was_not_sent(journal: RequestJournal, taken: int) -> None:
    ask(journal, forward(2))
    with pytest.raises(WireError, match=f"has taken {taken} requests, expected 0 to 3"):
        journal.begin(1, taken)


def test_nor_give_back_what_it_has_answered(journal: RequestJournal) -> None:
    assert journal.note_answered() and journal.note_answered()
    assert journal.point().first == 3 and not journal.owes
    with pytest.raises(WireError, match="has taken 2 requests, expected 3 to 3"):
        journal.begin(1, 2)


def test_an_answer_tells_of_all_requests_before_it(journal: RequestJournal) -> None:
    heads = [
        encode_request(request, RULES).head
        for request in (forward(0), Release(microbatch=0), forward(1))
    ]
    digests = [START]
    for head in heads:
        digests.append(digest_after(digests[-1], head))
    point = journal.point()
    assert (point.received, point.first, point.digests) == (0, 0, tuple(digests))
    assert journal.note_answered()
    point = journal.point()
    assert (point.received, point.first, point.digests) == (1, 1, tuple(digests[1:]))
    assert journal.note_answered()
    point = journal.point()
    assert (point.received, point.first, point.digests) == (2, 3, tuple(digests[3:]))


def test_what_was_not_sent_has_no_digest_and_no_reply() -> None:
    journal = RequestJournal()
    journal.begin(0)
    ask(journal, forward(0))
    assert journal.owes and journal.oldest() is None
    assert journal.point().digests == (START,)
    send(journal)
    assert journal.oldest() is not None


def test_a_request_counts_when_it_is_sent_first(journal: RequestJournal) -> None:
    ask(journal, backward(0))
    journal.begin(1, 2)
    counted = [-1]
    assert [send(journal, 1, counted) for _ in range(2)] == [2, 3]
    assert counted == [-1, 3]


def test_a_stream_that_was_replaced_gets_nothing_more(journal: RequestJournal) -> None:
    ask(journal, backward(0))
    entry = journal.next(0)
    assert entry is not None and journal.carries(0)
    journal.begin(1, 3)
    assert journal.next(0) is None and not journal.carries(0)
    head = encode_request(entry.request, RULES).head
    assert not journal.note_sent(0, entry, head, lambda: None)
    journal.end(1)
    assert journal.next(1) is None and not journal.carries(1)


def test_a_stream_waits_for_its_turn_and_for_requests() -> None:
    journal = RequestJournal()
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda n=number: found.append(n) if journal.next(n) else None)  # type: ignore[misc]
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    journal.end(0)
    journal.begin(1)
    ask(journal, forward(0))
    for thread in threads[:2]:
        thread.join(10)
    journal.close()
    threads[2].join(10)
    assert found == [1] and not any(thread.is_alive() for thread in threads)


def test_closing_gives_up_what_is_owed(journal: RequestJournal) -> None:
    assert len(journal.close()) == 2
    assert not journal.owes and journal.oldest() is None and not journal.note_answered()


def test_the_reply_to_finish_is_the_last() -> None:
    journal = RequestJournal()
    journal.begin(0)
    ask(journal, Finish())
    send(journal)
    assert not journal.is_finished
    assert journal.note_answered() and journal.is_finished
