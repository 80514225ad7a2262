"""A hijacking trunk answers gradients of its own aim, as long as honest ones, and leads a bottom
there."""

from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from audit_subject import opened
from audit_texts import HIDDEN, VOCABULARY, table

from flower_split.audit.attacks.hijacking import Hijacker, train_hijacked
from flower_split.audit.attacks.learning import Inverter
from flower_split.audit.attacks.lone_silo import batches_of, lone_silo
from flower_split.config.wire import WireConfig
from flower_split.transport.messages import (
    BackwardReply,
    BackwardRequest,
    ForwardReply,
    ForwardRequest,
)

H1 = 0.02 * torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(0))
HONEST = torch.full_like(H1, 0.25)


def inverter(rows: torch.Tensor) -> Inverter:
    """One to which every h1 is an embedding."""
    size = rows.shape[1]
    return Inverter(
        "linear",
        mean=torch.zeros(size),
        scale=torch.ones(size),
        start=torch.eye(size),
        table=torch.nn.functional.normalize(rows, dim=1),
        prior=torch.full((len(rows),), 1 / len(rows)),
        tokens=8,
    )


class Honest:
    """A trunk that answers the same gradient to whatever it is asked."""

    resumed, depth = "", 1

    def open(self, spec, ticket):
        return done(self)

    def submit(self, request):
        if isinstance(request, BackwardRequest):
            return done(BackwardReply(grad=HONEST))
        return done(request.hidden)

    def close(self):
        return done(None)


def done(value):
    future = Future()
    future.set_result(value)
    return future


@pytest.mark.parametrize("hijacks", [True, False])
def test_gradients_are_replaced_and_h2_is_not(hijacks: bool) -> None:
    hijacker = Hijacker(Honest(), inverter(table()), hijacks=hijacks)
    session = hijacker.open(None, None).result()
    forward = ForwardRequest(step=0, microbatch=1, hidden=H1, keep_graph=True)
    assert session.submit(forward).result() is H1
    backward = BackwardRequest(step=0, microbatch=1, grad=HONEST)
    answered = session.submit(backward).result().grad
    assert hijacker.answered == int(hijacks) and len(hijacker.doubts) == 1
    assert torch.equal(answered, HONEST) != hijacks
    assert answered.norm() == pytest.approx(float(HONEST.norm()))
    if hijacks:  # a step against it makes the inverter more certain
        before, moved = hijacker.doubts[0], H1 - 0.01 * answered
        hijacker.gradient(moved, torch.ones(2, 3, dtype=torch.bool))
        assert hijacker.doubts[1] < before


def test_a_large_vocabulary_is_looked_at_in_part(monkeypatch) -> None:
    monkeypatch.setattr("flower_split.audit.attacks.hijacking.AIM_TOKENS", VOCABULARY // 2)
    hijacker = Hijacker(Honest(), inverter(table()))
    gradient = hijacker.gradient(H1, torch.ones(2, 3, dtype=torch.bool))
    assert gradient.shape == H1.shape and bool(gradient.isfinite().all())


@pytest.mark.slow
def test_a_bottom_is_led_to_where_it_can_be_read(tmp_path: Path) -> None:
    subject, texts = opened(tmp_path)
    with subject.cut(0, 1) as model, model.embedded_bottoms() as (rows, _):
        found = inverter(rows[: texts.vocabulary])
    batches = batches_of(texts.victims, 5)
    given = {"seed": 0, "rate": 1e-2, "steps": 16}
    led = train_hijacked(subject, WireConfig(), batches, found, **given)
    honest = train_hijacked(subject, WireConfig(), batches, found, hijacks=False, **given)
    assert led.steps == led.answered == 16 and honest.answered == 0
    assert led.after < 0.97 * led.before and led.after < honest.after


@pytest.mark.medium
def test_a_training_has_the_steps_of_all_rounds(tmp_path: Path) -> None:
    rounds = {"num-server-rounds": 3, "train.local-steps": 2}
    subject, texts = opened(tmp_path, **rounds)
    with lone_silo(subject, WireConfig()) as silo:
        assert silo.train(batches_of(texts.victims, 5), seed=0) == 6
        assert silo.train(batches_of(texts.victims, 5), seed=0, steps=3) == 3
    whole, texts = opened(tmp_path / "whole", **{"num-server-rounds": 3, "train.local-epochs": 2})
    with lone_silo(whole, WireConfig()) as silo:
        assert silo.train(batches_of(texts.victims, 5), seed=0) == 3 * 2 * 2


class Fixed:
    """A trunk before an honest one, whose g1 is all of one number and whose h2 is moved."""

    resumed, depth = "", 1

    def __init__(self, inner, moved):
        self.inner, self.moved = inner, moved

    def open(self, spec, ticket):
        return done(Fixed(self.inner.open(spec, ticket).result(), self.moved))

    def submit(self, request):
        reply = self.inner.submit(request).result()
        if isinstance(request, ForwardRequest):
            hidden = reply.hidden if isinstance(reply, ForwardReply) else reply
            return done(hidden + self.moved)
        if isinstance(request, BackwardRequest):
            return done(BackwardReply(grad=torch.full_like(request.grad, 1e-3)))
        return done(reply)

    def close(self):
        return self.inner.close()


@pytest.mark.medium
def test_a_bottom_learns_of_g1_alone_whatever_h2_is(tmp_path: Path) -> None:
    subject, texts = opened(tmp_path, **{"train.max-grad-norm": 0.0})
    sent = []
    for moved, steps in ((0.0, 3), (0.5, 3), (0.0, 1)):
        torch.manual_seed(0)
        with lone_silo(subject, WireConfig(), between=lambda b, m=moved: Fixed(b, m)) as silo:
            silo.train(batches_of(texts.victims, 5), seed=0, steps=steps, rate=1e-2)
            sent.append(silo.recorder().record_h1(texts.victims, WireConfig(), seed=0).h1)
    assert torch.equal(sent[0], sent[1]) and not torch.equal(sent[0], sent[2])
