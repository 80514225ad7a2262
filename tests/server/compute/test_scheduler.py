"""The scheduler: backward first, nobody starves, batches within their bounds."""

from hypothesis import given
from hypothesis import strategies as st

from flower_split.server.compute.scheduler import Scheduler, Turn, width_times_rows

NO_BOUND = float("inf")


def turn(session: int, kind: str = "forward", arrived: float = 0.0, **changes: object) -> Turn:
    fields: dict[str, object] = {"rows": 1, "tokens": 8, "mix": "a", **changes}
    return Turn(session=session, kind=kind, arrived=arrived, **fields)  # type: ignore[arg-type]


def scheduler(max_tokens: int = 64, gather: float = 0.0, *turns: Turn) -> Scheduler:
    made = Scheduler(max_tokens=max_tokens, gather=gather)
    for one in turns:
        made.add(one)
    return made


def sessions(batch: object) -> list[int]:
    assert isinstance(batch, list), batch
    return [one.session for one in batch]


def test_backward_passes_come_first_and_then_who_came_first() -> None:
    queue = scheduler(8, 0.0, turn(1, arrived=0), turn(2, arrived=1), turn(3, "backward", 2))
    assert [sessions(queue.next(5.0, NO_BOUND)) for _ in range(3)] == [[3], [1], [2]]
    assert queue.next(5.0, NO_BOUND) is None


def test_turns_of_one_kind_and_mix_share_a_batch_within_the_tokens() -> None:
    queue = scheduler(
        24, 0.0, *(turn(n, arrived=n) for n in range(4)), turn(7, mix="b"), turn(8, mix=None)
    )
    assert sorted(len(sessions(queue.next(9.0, NO_BOUND))) for _ in range(4)) == [1, 1, 1, 3]


def test_a_request_larger_than_a_batch_is_computed_alone() -> None:
    queue = scheduler(24, 0.0, turn(1, rows=9), turn(2, arrived=1))
    assert sessions(queue.next(2.0, NO_BOUND)) == [1]


def test_much_padding_is_not_worth_it() -> None:
    queue = scheduler(1000, 0.0, turn(1, tokens=100), turn(2, tokens=10, arrived=1))
    assert sessions(queue.next(2.0, NO_BOUND)) == [1]


def test_it_waits_for_who_is_likely_to_come_but_not_longer_than_allowed() -> None:
    queue = scheduler(64, 0.01, turn(1), turn(2))
    assert sessions(queue.next(0.0, NO_BOUND)) == [1, 2]  # nobody else was ever here
    queue.add(turn(1, arrived=1.0))
    assert queue.next(1.0, NO_BOUND) == 1.01 - 1.0
    queue.add(turn(2, arrived=1.005))
    assert sessions(queue.next(1.005, NO_BOUND)) == [1, 2]
    queue.add(turn(1, arrived=2.0))
    assert sessions(queue.next(2.02, NO_BOUND)) == [1]
    queue.leave(2)
    queue.add(turn(1, arrived=3.0))
    assert sessions(queue.next(3.0, NO_BOUND)) == [1]  # who left is not waited for


def test_a_backward_pass_waits_for_its_own_crew() -> None:
    queue = scheduler(64, 0.01)
    queue.expect(5, {1, 2})
    queue.add(turn(1, "backward", mix=5))
    delay = queue.next(0.0, NO_BOUND)
    assert delay == 0.01
    queue.add(turn(3, arrived=0.0, mix="a"))
    assert sessions(queue.next(0.0, NO_BOUND)) == [3]  # the trunk does not idle meanwhile
    queue.expect(5, {1})
    assert sessions(queue.next(0.0, NO_BOUND)) == [1]


def test_without_room_only_who_holds_nothing_waits_and_not_for_ever() -> None:
    queue = scheduler(64, 0.0, turn(1, keeps=True), turn(2, keeps=True, holds=True, mix="b"))
    assert sessions(queue.next(0.0, room=4)) == [2]
    delay = queue.next(0.0, room=4)
    assert isinstance(delay, float) and delay > 0
    queue.add(turn(3, "backward", mix=None))
    assert sessions(queue.next(0.0, room=0)) == [3]
    assert sessions(queue.next(delay, room=0)) == [1]
    queue.add(turn(1, keeps=True))
    assert sessions(queue.next(0.0, room=8)) == [1]


def test_a_batch_does_not_outgrow_the_room() -> None:
    queue = scheduler(640, 0.0, *(turn(n, keeps=True, arrived=n) for n in range(4)))
    assert sessions(queue.next(9.0, room=16)) == [0, 1]


def test_no_silo_waits_behind_a_greedy_one() -> None:
    """Eight silos with 64 tokens a request, and one that always has 4096 more to compute.

    Time is as the trunk computes: 1 per token. A silo thinks for as long as a small batch takes.
    """
    queue = scheduler(1024, 0.0)
    asks: list[tuple[float, int]] = [(0.0, session) for session in range(9)]
    waits: dict[int, list[float]] = {session: [] for session in range(9)}
    now = 0.0
    while now < 2e6:
        for when, session in [ask for ask in asks if ask[0] <= now]:
            asks.remove((when, session))
            greedy = session == 8
            kind = "backward" if len(waits[session]) % 2 else "forward"
            queue.add(turn(session, kind, when, rows=64 if greedy else 1, tokens=64))
        batch = queue.next(now, NO_BOUND)
        if not isinstance(batch, list):
            now = min(when for when, _ in asks)
            continue
        now += width_times_rows(batch)
        for one in batch:
            waits[one.session].append(now - one.arrived)
            asks.append((now + (0.0 if one.session == 8 else 512.0), one.session))
    for session in range(8):
        # At worst: the greedy one's batch that computes already, one of each kind, and its own.
        p95 = sorted(waits[session])[int(0.95 * len(waits[session]))]
        assert p95 <= 2 * 4096 + 3 * 512
    assert len(waits[8]) > 50


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["forward", "backward"]),
            st.integers(1, 4),
            st.integers(1, 40),
            st.sampled_from([None, "a", "b"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 100),
)
def test_batches_keep_to_their_bounds_and_nobody_starves(
    arriving: list[tuple[str, int, int, str | None, bool]], max_tokens: int
) -> None:
    """Requests arrive while others are computed; each new one comes from the next of 8 sessions."""
    queue = scheduler(max_tokens, 0.5)
    waits: dict[Turn, int] = {}
    waiting: set[int] = set()
    now, computed = 0.0, 0
    pending = list(arriving)
    while pending or waits:
        free = [session for session in range(8) if session not in waiting]
        while pending and free:
            kind, rows, tokens, mix, pause = pending.pop(0)
            new = turn(free.pop(0), kind, now, rows=rows, tokens=tokens, mix=mix)
            queue.add(new)
            waits[new] = 0
            waiting.add(new.session)
            if pause:
                break
        batch = queue.next(now, NO_BOUND)
        if not isinstance(batch, list):
            assert batch is not None and 0 < batch <= 0.5
            now += batch
            continue
        assert len({(one.kind, one.mix) for one in batch}) == 1
        assert len({one.session for one in batch}) == len(batch)
        if len(batch) > 1:
            assert batch[0].mix is not None
            assert width_times_rows(batch) <= max_tokens
        for one in batch:
            assert waits.pop(one) <= 2 + 8
            waiting.discard(one.session)
            computed += 1
        for one in waits:
            waits[one] += 1
        now += 0.01
    assert computed == len(arriving) and len(queue) == 0
