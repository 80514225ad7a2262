"""Rows 3, 9, 12 and 17: lost answers, slow writers, steps out of order, strangers at the port."""

import grpc
import pytest
import torch
from attack import Attack
from certificates import signed
from cutting_relay import CuttingRelay, Message, Place
from watched_trunk import (
    FREED_SECONDS,
    MICROBATCHES,
    VICTIM,
    Mutual,
    WatchedTrunk,
    watched_trunk,
    withstood,
)

from flower_split.errors import CertificateError, DeadlineError, TrunkError
from flower_split.server.grpc.service import ServiceLimits
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.grpc.channel import Keepalive
from flower_split.transport.messages import (
    BackwardRequest,
    Finish,
    ForwardRequest,
    Request,
    StepRequest,
)

WIDTH = 32
STEP_REPLY = 1 + 2 * MICROBATCHES
"""Number of the reply to the first step: after the welcome, and two for each microbatch."""


@pytest.mark.medium
@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize(
    ("number", "place"),
    [
        (number, place)
        for number in (STEP_REPLY, STEP_REPLY - 1, *range(STEP_REPLY - 1), STEP_REPLY + 1)
        for place in ("before", "middle")
    ],
)
def test_row_03_an_answer_that_is_lost(
    trunk: WatchedTrunk, number: int, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The silo sends its request again, and what was computed for it counts once."""

    def cut(message: Message) -> Place | None:
        return place if message == Message(0, "down", number) else None

    with (
        withstood(trunk, caplog) as fault,
        CuttingRelay(trunk.server.address, cut) as relay,
    ):
        assert fault.attempt(trunk.invite(VICTIM), relay.address) is not None
        assert relay.connections == 2


@pytest.mark.medium
def test_row_09_a_silo_that_writes_slowly(caplog: pytest.LogCaptureFixture) -> None:
    """A request whose last bytes do not come ends its session, and no other one waits for it."""

    def stall(message: Message) -> Place | None:
        return "stall" if message == Message(0, "up", 1) else None

    limits, slow = ServiceLimits(idle_timeout=2.0), Keepalive()  # which finds no dead line
    with (
        watched_trunk(limits=limits, keepalive=slow) as trunk,
        withstood(trunk, caplog) as fault,
        CuttingRelay(trunk.server.address, stall) as relay,
        trunk.connect(trunk.invite(VICTIM), relay.address, keepalive=slow) as transport,
    ):
        hidden = torch.ones(2, 5, WIDTH)
        waiting = transport.forward(ForwardRequest(step=0, microbatch=0, hidden=hidden))
        error = waiting.exception(FREED_SECONDS)
        assert type(error) is DeadlineError
        fault.errors.append(error)


def forward(step: int, microbatch: int) -> ForwardRequest:
    hidden = torch.ones(2, 5, WIDTH)
    return ForwardRequest(step=step, microbatch=microbatch, hidden=hidden, keep_graph=True)


def backward(step: int, microbatch: int) -> BackwardRequest:
    return BackwardRequest(step=step, microbatch=microbatch, grad=torch.ones(2, 5, WIDTH))


def stepped(step: int) -> StepRequest:
    return StepRequest(step=step, learning_rate=1e-2)


ORDERS: dict[str, tuple[Request, ...]] = {
    "a step twice": (forward(0, 0), backward(0, 0), stepped(0), stepped(0)),
    "a step skipped": (forward(0, 0), backward(0, 0), stepped(1)),
    "an old step": (stepped(0), stepped(1), forward(1, 0)),
    "backward before forward": (backward(0, 0), forward(0, 0)),
    "two forward passes": (forward(0, 0), forward(0, 0)),
    "two backward passes": (forward(0, 0), backward(0, 0), backward(0, 0)),
    "a graph of the step before": (forward(0, 0), stepped(0), backward(1, 0)),
    "after the end": (stepped(0), Finish(), stepped(1)),
}


@pytest.mark.medium
@pytest.mark.sampled(keep=4)
@pytest.mark.parametrize("order", ORDERS)
def test_row_12_steps_out_of_order(attack: Attack, order: str) -> None:
    """Refused, with the step that is expected; `test_session_machine.py` tries any order."""
    requests = ORDERS[order]
    if Finish() in requests:
        invited = attack.fault.trunk.invite(VICTIM)
        with attack.fault.trunk.connect(invited) as transport:
            transport.step(stepped(0)).result(20)
            assert transport.finish().steps == 1
            with pytest.raises(TrunkError):
                transport.step(stepped(1)).result(20)
        outcome = invited.record.collect()
        assert outcome is not None and outcome.summary.steps == 1
        return
    ending = attack.ending(*attack.frames(*requests))
    assert ending == (grpc.StatusCode.FAILED_PRECONDITION, "SequenceError")


@pytest.mark.medium
def test_row_17_strangers_at_the_port_disturb_nobody(
    mutual: Mutual, caplog: pytest.LogCaptureFixture
) -> None:
    """With a CA that is not the trunk's, without a certificate, with one of nobody's: each is told
    why, and the silo whose ticket it was trains with it as ever."""
    trunk = mutual.trunk
    with withstood(trunk, caplog) as fault:
        invited = trunk.invite(VICTIM, run=17)
        assert trunk.tls is not None
        foreign = ServerTls.ephemeral()
        _, ((certificate, key),) = signed("stranger")
        for stranger in (
            ClientTls(ca=foreign.ca),
            ClientTls(ca=trunk.tls.ca),
            ClientTls(ca=trunk.tls.ca, certificate=certificate, private_key=key),
        ):
            fault.refused(
                lambda tls=stranger: trunk.connect(invited, tls=tls, connect_timeout=4.0),
                CertificateError,
            )
        assert fault.attempt(invited, tls=mutual.owner) is not None
