"""Every order in which a silo, the trunk and the strategy may come to a ticket."""

import itertools
from collections.abc import Callable
from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flower_split.errors import SequenceError
from flower_split.server.session_states import SiloState
from flower_split.server.ticket_record import SessionOutcome, Stage, TicketRecord, TrunkStart
from flower_split.transport.messages import SessionSummary

SUMMARY = SessionSummary(steps=1, forwards=2, backwards=2, tokens=3)
STATE = SiloState(silo="north", server_round=1, tag="t")


class Work:
    """A session's work that says what was asked of it."""

    def __init__(self, proposal: SiloState | None = STATE) -> None:
        self.asked: list[str] = []
        self._proposal = proposal

    def outcome(self, summary: SessionSummary) -> SessionOutcome:
        self.asked.append("outcome")
        return SessionOutcome(tensors={}, summary=summary, scaling=None, silo="north")

    def proposal(self, summary: SessionSummary) -> SiloState | None:
        self.asked.append("proposal")
        return self._proposal

    def free(self) -> None:
        self.asked.append("free")


EVENTS: dict[str, Callable[[TicketRecord], object]] = {
    "start": lambda record: record.start(),
    "open": lambda record: record.open(Work()),
    "finish": lambda record: record.finish(SUMMARY),
    "close": lambda record: record.close(),
    "collect": lambda record: record.collect(),
    "accept": lambda record: record.accept(),
    "withdraw": lambda record: record.withdraw(),
    "discard": lambda record: record.discard(),
}

WAYS = {
    Stage.PREPARED: [],
    Stage.OPEN: ["open"],
    Stage.FINISHED: ["open", "finish"],
    Stage.COLLECTED: ["open", "finish", "close", "collect"],
    Stage.ACCEPTED: ["open", "finish", "close", "collect", "accept"],
    Stage.BROKEN: ["open", "close"],
    Stage.DISCARDED: ["open", "discard"],
}
"""How a record comes to each stage."""

PREPARED, OPEN, FINISHED, COLLECTED, ACCEPTED, BROKEN, DISCARDED = Stage

LEADS: dict[Stage, dict[str, Stage]] = {
    PREPARED: {"start": PREPARED, "open": OPEN},
    OPEN: {"finish": FINISHED, "close": BROKEN},
    FINISHED: {"close": FINISHED, "collect": COLLECTED},
    COLLECTED: {"close": COLLECTED, "accept": ACCEPTED},
    ACCEPTED: {"close": ACCEPTED},
    BROKEN: {"close": BROKEN},
    DISCARDED: {"finish": DISCARDED, "close": DISCARDED},
}
"""Where each event leads from each stage; one that is not here is refused."""

for stage, steps in LEADS.items():
    steps |= {"discard": DISCARDED, "withdraw": stage}
    steps.setdefault("collect", stage)


def record_at(stage: Stage) -> TicketRecord:
    record = TicketRecord(TrunkStart())
    for event in WAYS[stage]:
        EVENTS[event](record)
    assert record.stage is stage
    return record


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("event", EVENTS)
def test_every_event_leads_where_the_table_says_or_is_refused(stage: Stage, event: str) -> None:
    record = record_at(stage)
    wanted = LEADS[stage].get(event)
    if wanted is None:
        with pytest.raises(SequenceError, match=f"is {stage.value} and cannot be"):
            EVENTS[event](record)
    else:
        EVENTS[event](record)
    assert record.stage is (stage if wanted is None else wanted)
    assert record.is_broken == (record.stage is Stage.BROKEN)


def test_the_start_is_read_until_the_session_is_open() -> None:
    start = TrunkStart(tensors={"a": torch.zeros(1)})
    record = TicketRecord(start)
    assert record.start() is record.start() is start
    record.open(Work())
    with pytest.raises(SequenceError, match="only one that is prepared can"):
        record.start()
    assert TicketRecord().start() is None


def test_an_outcome_is_collected_once_and_a_proposal_accepted_once() -> None:
    record, work = TicketRecord(), Work()
    record.open(work)
    assert record.collect() is None
    record.finish(SUMMARY)
    outcome = record.collect()
    assert outcome is not None and outcome.summary is SUMMARY
    assert record.collect() is None
    assert record.accept() is STATE
    record.close()
    record.close()
    assert work.asked == ["outcome", "proposal", "free"]


def test_a_reply_may_count_before_the_session_is_closed() -> None:
    record, work = TicketRecord(), Work(proposal=None)
    record.open(work)
    record.finish(SUMMARY)
    assert record.collect() is not None
    assert record.accept() is None
    assert not record.is_broken
    record.close()
    assert record.stage is Stage.ACCEPTED
    assert work.asked[-1] == "free"


def test_a_withdrawn_proposal_is_nothing() -> None:
    record = record_at(Stage.COLLECTED)
    record.withdraw()
    assert record.accept() is None


def test_a_session_outlives_its_record_and_is_asked_for_nothing() -> None:
    record, work = TicketRecord(), Work()
    record.open(work)
    record.discard()
    record.finish(SUMMARY)
    assert work.asked == []
    record.close()
    assert work.asked == ["free"]
    assert record.collect() is None


def test_a_session_that_is_discarded_while_it_finishes_leaves_nothing() -> None:
    class Late(Work):
        def proposal(self, summary: SessionSummary) -> SiloState | None:
            record.discard()
            return super().proposal(summary)

    record = TicketRecord()
    record.open(Late())
    record.finish(SUMMARY)
    assert record.stage is Stage.DISCARDED
    assert record.collect() is None


def test_two_openings_at_once_are_one() -> None:
    for _ in range(20):
        record, barrier = TicketRecord(), Barrier(4)
        opened: list[Work] = []

        def attempt(
            record: TicketRecord = record,
            barrier: Barrier = barrier,
            opened: list[Work] = opened,
        ) -> None:
            work = Work()
            barrier.wait()
            try:
                record.open(work)
            except SequenceError:
                return
            opened.append(work)

        threads = [Thread(target=attempt) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == 1


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=12))
def test_in_whatever_order_things_come_nothing_is_counted_twice_or_too_late(
    order: list[str],
) -> None:
    record, work = TicketRecord(TrunkStart()), Work()
    stage, outcomes, accepted = Stage.PREPARED, 0, 0
    for event in order:
        wanted = LEADS[stage].get(event)
        try:
            told = record.open(work) if event == "open" else EVENTS[event](record)
        except SequenceError:
            assert wanted is None
            continue
        assert wanted is not None
        outcomes += isinstance(told, SessionOutcome)
        accepted += isinstance(told, SiloState)
        stage = wanted
        assert record.stage is stage
    assert accepted <= outcomes <= 1
    assert work.asked.count("free") <= 1
    assert work.asked.count("outcome") <= 1
    if Stage.DISCARDED is stage:
        assert record.collect() is None


def test_however_silo_and_strategy_interleave_what_counts_was_finished() -> None:
    silo, strategy = ["open", "finish", "close"], ["collect", "accept", "discard"]
    for places in itertools.combinations(range(6), 3):
        own, other = iter(silo), iter(strategy)
        record, told = TicketRecord(), list[object]()
        for place in range(6):
            event = next(own if place in places else other)
            try:
                told.append(EVENTS[event](record))
            except SequenceError:
                told.append(None)
        finished_first = places[1] < min({*range(6)} - {*places})
        outcome = next((one for one in told if isinstance(one, SessionOutcome)), None)
        assert (outcome is not None) == finished_first
        assert any(one is STATE for one in told) == finished_first
        assert record.stage is Stage.DISCARDED
