"""Rows 6 to 8: lines between a silo and its trunk that fall silent, break, or are slow."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from chaos_proxy import ChaosProxy, End, Way
from hosting import eventually
from torch import Tensor
from watched_trunk import (
    FREED_SECONDS,
    STEPS,
    VICTIM,
    Trained,
    WatchedTrunk,
    watched_trunk,
    withstood,
)

from flower_split.errors import TrunkError, TrunkUnavailableError
from flower_split.server.grpc.service import ServiceLimits
from flower_split.transport.messages import ForwardRequest

IMPATIENT = {"connect_timeout": 1.5, "timeout": 5.0}
"""A silo's options where the line falls silent."""


@pytest.fixture(scope="module")
def passed(trunk: WatchedTrunk) -> tuple[int, int]:
    """Bytes of a whole session, up and down."""
    with ChaosProxy(trunk.server.address) as line:
        invited = trunk.invite(VICTIM)
        trunk.is_alone(invited, trunk.train(invited, line.address))
        return line.sent, line.received


AT = (0.4, 0.0, 0.95)
"""Parts of a session's bytes that pass before a fault; 0.0 is before the first one."""


@pytest.mark.medium
def test_row_06_lines_that_pass_nothing(
    trunk: WatchedTrunk, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing passes either way, and no end is told of it, over whatever line."""
    way = Way(after=0, then="blackhole")
    with (
        withstood(trunk, caplog) as fault,
        ChaosProxy(trunk.server.address, up=way, connections=1000) as line,
    ):
        before = trunk.server.num_sessions
        assert fault.attempt(trunk.invite(VICTIM), line.address, **IMPATIENT) is None
        assert isinstance(fault.errors[0], TrunkUnavailableError)
        # With the line still there: the trunk hears of no end either.
        assert eventually(lambda: trunk.server.num_sessions == before, FREED_SECONDS)


@pytest.mark.medium
@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize("at", AT)
def test_row_06_a_line_that_falls_silent(
    trunk: WatchedTrunk, passed: tuple[int, int], at: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Keepalive finds out at both ends; the silo goes on over another line, and loses nothing."""
    way = Way(after=int(at * passed[0]), then="blackhole")
    with (
        withstood(trunk, caplog) as fault,
        ChaosProxy(trunk.server.address, up=way) as line,
    ):
        assert fault.attempt(trunk.invite(VICTIM), line.address) is not None
        assert line.accepted >= 2


def every(*kinds: End) -> list[tuple[str, End, float]]:
    """Way, kind and place of a cut: everywhere in the exhaustive suite, here and there before."""
    first = [(way, kind, at) for at in (0.4, 0.0, 0.95) for kind in kinds for way in ("up", "down")]
    more = [n / 40 for n in range(1, 40)]
    return first + [(way, kind, at) for at in more for kind in kinds for way in ("up", "down")]


CUTS, SILENCES = every("reset", "close"), every("silence")


@pytest.mark.medium
@pytest.mark.sampled(keep=5)
@pytest.mark.parametrize(
    ("way", "kind", "at"), [*CUTS[:12], *SILENCES[:2], *CUTS[12:], *SILENCES[2:]]
)
def test_row_07_a_line_that_is_cut_or_falls_silent_one_way(
    trunk: WatchedTrunk,
    passed: tuple[int, int],
    way: str,
    kind: End,
    at: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cut = Way(after=int(at * passed[way == "down"]), then=kind)
    with (
        withstood(trunk, caplog) as fault,
        ChaosProxy(trunk.server.address, **{way: cut}) as line,
    ):
        impatience = IMPATIENT if kind == "silence" else {}
        fault.attempt(trunk.invite(VICTIM), line.address, **impatience)
        assert line.accepted  # the session did go that way


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["reset", "close"])
def test_row_07_a_line_that_ends_between_two_steps(
    trunk: WatchedTrunk, kind: End, caplog: pytest.LogCaptureFixture
) -> None:
    with withstood(trunk, caplog) as fault, ChaosProxy(trunk.server.address) as line:
        invited, trained = trunk.invite(VICTIM), None
        with trunk.connect(invited, line.address) as transport:
            got = trunk.make_step(transport, VICTIM, 0)
            line.cut(kind)
            try:
                for step in range(1, STEPS):
                    got += trunk.make_step(transport, VICTIM, step)
                transport.finish()
                trained = Trained(got)
            except TrunkError as error:
                fault.errors.append(error)
        trunk.is_alone(invited, trained)


@pytest.fixture(scope="module")
def shared() -> Iterator[WatchedTrunk]:
    """Whose sessions change one adapter, which outlives them."""
    with watched_trunk(mode="shared") as served:
        yield served


def begun_anew(trunk: WatchedTrunk) -> None:
    assert eventually(trunk.is_free, FREED_SECONDS)
    trunk.engine.load_session_states(())
    trunk.engine.load_shared_state(trunk.start)


@pytest.fixture(scope="module")
def whole_steps(shared: WatchedTrunk) -> list[dict[str, Tensor]]:
    """The shared adapter before the first step of a session, after it, and so on."""
    begun_anew(shared)
    states = [shared.engine.shared_state()]
    with shared.connect(shared.invite(VICTIM)) as transport:
        for step in range(STEPS):
            shared.make_step(transport, VICTIM, step)
            states.append(shared.engine.shared_state())
        transport.finish()
    return states


@pytest.mark.medium
@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize(("way", "kind", "at"), every("reset"))
def test_row_07_a_cut_line_leaves_whole_steps_in_a_shared_adapter(
    shared: WatchedTrunk,
    passed: tuple[int, int],
    whole_steps: list[dict[str, Tensor]],
    way: str,
    kind: End,
    at: float,
) -> None:
    """A step that did not arrive whole has changed nothing, of what outlives the session either."""
    begun_anew(shared)
    cut = Way(after=int(at * passed[way == "down"]), then=kind)
    with ChaosProxy(shared.server.address, **{way: cut}) as line, suppress(TrunkError):
        shared.train(shared.invite(VICTIM), line.address)
    assert eventually(shared.is_free, FREED_SECONDS)
    left = shared.engine.shared_state()
    equal = [all(torch.equal(left[n], t) for n, t in one.items()) for one in whole_steps]
    assert sum(equal) == 1


SLOW = {
    "late and uneven": (Way(delay=0.002, jitter=0.004), Way(delay=0.002, jitter=0.004)),
    "in slices of a byte": (Way(slices=1), Way(slices=1)),
    "in slices that no frame ends with": (Way(slices=7), Way(slices=11)),
    "narrow": (Way(rate=200_000), Way(rate=200_000)),
}


@pytest.mark.medium
@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize("how", SLOW)
def test_row_07_a_line_that_delays_or_slices_changes_nothing(
    trunk: WatchedTrunk, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    up, down = SLOW[how]
    with (
        withstood(trunk, caplog) as fault,
        ChaosProxy(trunk.server.address, up=up, down=down, seed=7) as line,
    ):
        assert fault.attempt(trunk.invite(VICTIM), line.address) is not None


@pytest.mark.exhaustive
def test_row_08_a_silo_that_reads_slowly(caplog: pytest.LogCaptureFixture) -> None:
    """Replies wait at the trunk up to a bound, and the session does not stay for ever."""
    asked = 200
    with (
        watched_trunk(limits=ServiceLimits(idle_timeout=1.0, transfer_timeout=5.0)) as trunk,
        withstood(trunk, caplog) as fault,
        ChaosProxy(
            trunk.server.address, down=Way(rate=20_000, slices=2_000), connections=1000
        ) as line,
        trunk.connect(trunk.invite(VICTIM), line.address) as transport,
    ):
        computed: list[int] = []
        trunk.engine.trunk.register_forward_hook(lambda *made: computed.append(len(made[-1])))
        hidden = torch.ones(64, 64, trunk.engine.trunk.hidden_size)
        waiting = [
            transport.forward(ForwardRequest(step=0, microbatch=number, hidden=hidden))
            for number in range(asked)
        ]
        error = waiting[-1].exception(FREED_SECONDS)
        assert isinstance(error, TrunkError)
        fault.errors.append(error)
        assert sum(rows == len(hidden) for rows in computed) < asked
