"""On a training: what an adapter has kept of single records, and where a trunk may lead it."""

from collections.abc import Callable
from dataclasses import replace

import torch

from flower_split.audit import controls, metrics
from flower_split.audit.attacking import BASE, CURRENT, LEARNT
from flower_split.audit.attacks.canaries import (
    CANARIES,
    RATE,
    plant_canaries,
    tell_canaries,
    without_noise,
)
from flower_split.audit.attacks.hijacking import Hijacked, train_hijacked
from flower_split.audit.attacks.learning import Fitted, fit
from flower_split.audit.attacks.lone_silo import batches_of
from flower_split.audit.outcome import AttackResult, Control
from flower_split.audit.subject import CutModel
from flower_split.audit.texts import canary_documents
from flower_split.audit.under_way import UnderWay
from flower_split.config.wire import WireConfig
from flower_split.errors import DivergenceError
from flower_split.training.batch import Batch

HIJACKED_STEPS = 60
"""Of the control."""


def tell_trained(audit: UnderWay) -> None:
    """M1: who has the adapter that results tells what it was trained on."""
    audit.say("M1 canaries in an adapter that is trained here")
    began, seed, check = audit.budget.spent, audit.settings.seed, audit.budget.check
    made = canary_documents(audit.texts, 2 * CANARIES, seed=seed)
    told = tell_canaries(audit.subject, audit.texts.victims, made, seed=seed, check=check)
    audit.outcome.attacks.append(
        AttackResult(
            key="M1",
            name=f"canaries told from others at 1 % false ones, {told.count} of each",
            party="M",
            knows="the canaries, the adapter of a silo that trains alone",
            recording=audit.outcome.recordings["own"],
            seconds=audit.budget.spent - began,
            share=metrics.Share(value=told.tpr, low=told.tpr, high=told.tpr),
            detail={"least-epsilon": told.epsilon, "steps": told.steps},
        )
    )
    audit.say("canaries that are trained on many times")
    try:
        control = controls.canaries(plant_canaries(audit.subject, made, seed=seed, check=check))
    except DivergenceError as error:
        control = Control(name="canaries", passed=False, measured=f"no training: {error}")
    audit.outcome.controls.append(control)


def hijack(audit: UnderWay) -> None:
    """H1: a trunk whose gradients make the silo's bottom readable."""
    assert audit.base is not None and audit.deaf is not None
    if not audit.cuts[0]:
        audit.outcome.not_run["H1"] = "inapplicable: the silo trains nothing before the trunk"
        return
    audit.say("H1 a hijacking trunk")
    began, inverter = audit.budget.spent, audit.base
    after = list[_After]()
    led = _train(audit, audit.wire, inverter, then=lambda made: after.append(_after(audit, made)))
    if not led.answered:
        audit.outcome.not_run["H1"] = "inapplicable: the silo trains nothing before the trunk"
        return
    honest = list[torch.Tensor]()
    _train(
        audit,
        audit.wire,
        inverter,
        hijacks=False,
        then=lambda made: honest.append(_read(audit, made, audit.wire, inverter)),
    )
    seconds = audit.budget.spent - began
    weights = f"{BASE}, {LEARNT}"
    for name, party, knows, found in (
        ("the inverter of before", "T", weights, after[0].before),
        ("one that is trained again", "A+T", f"{weights}, {CURRENT}", after[0].again),
    ):
        audit.outcome.attacks.append(
            AttackResult(
                key="H1",
                name=f"a hijacking trunk, {led.steps} steps, read by {name}",
                party=party,
                knows=knows,
                recording=audit.outcome.recordings["own"],
                seconds=seconds,
                recovery=metrics.recovery(found, audit.texts, seed=audit.settings.seed),
                detail={
                    "steps": led.steps,
                    "doubt-before": led.before,
                    "doubt-after": led.after,
                    "tokens-on-an-honest-trunk": audit.token_share(honest[0]),
                },
                found=found,
            )
        )
    audit.outcome.controls.append(_hijacking_control(audit, after[0].fitted))


class _After:
    """What is read of a silo that was hijacked, by the inverter of before and by another one."""

    def __init__(self, before: torch.Tensor, again: torch.Tensor, fitted: Fitted) -> None:
        self.before = before
        self.again = again
        self.fitted = fitted


def _after(audit: UnderWay, made: CutModel) -> _After:
    assert audit.base is not None and audit.known is not None
    public = made.record_h1(
        audit.texts.public, audit.wire, seed=audit.settings.seed + 1, check=audit.budget.check
    )
    fitted = fit(
        audit.architecture,
        public,
        audit.texts,
        audit.known,
        most_steps=audit.settings.inverter_steps,
        seed=audit.settings.seed,
        check=audit.budget.check,
    )
    before = _read(audit, made, audit.wire, audit.base)
    return _After(before, _read(audit, made, audit.wire, fitted), fitted)


def _hijacking_control(audit: UnderWay, again: Fitted) -> Control:
    """At a rate of its own and without noise it must lead; under noise it must find nothing."""
    assert audit.base is not None and audit.deaf is not None
    audit.say("hijacking control")
    plain = without_noise(audit.wire)
    inverter = audit.base if plain == audit.wire else _plain_inverter(audit, plain)
    deaf_wire, deaf = audit.deaf
    found = list[torch.Tensor]()
    try:
        led = _train(audit, plain, inverter, rate=RATE, steps=HIJACKED_STEPS)
        honest = _train(audit, plain, inverter, rate=RATE, steps=HIJACKED_STEPS, hijacks=False)
        _train(
            audit,
            deaf_wire,
            deaf,
            then=lambda made: found.append(_read(audit, made, deaf_wire, deaf)),
        )
    except DivergenceError as error:
        return Control(name="hijacking", passed=False, measured=f"no training: {error}")
    return controls.hijacking(
        led, honest, audit.token_share(found[0]), audit.texts, converged=again.converged
    )


def _plain_inverter(audit: UnderWay, wire: WireConfig) -> Fitted:
    assert audit.known is not None
    with replace(audit.subject, adapter=None).cut(*audit.cuts) as model:
        public = model.record_h1(audit.texts.public, wire, seed=audit.settings.seed + 1)
    return fit(
        "linear",
        public,
        audit.texts,
        audit.known,
        most_steps=audit.settings.inverter_steps,
        seed=audit.settings.seed,
        check=audit.budget.check,
    )


def _train(
    audit: UnderWay,
    wire: WireConfig,
    inverter: Fitted,
    *,
    hijacks: bool = True,
    rate: float = 0.0,
    steps: int = 0,
    then: Callable[[CutModel], None] | None = None,
) -> Hijacked:
    return train_hijacked(
        audit.subject,
        wire,
        _batches(audit),
        inverter.network,
        seed=audit.settings.seed,
        hijacks=hijacks,
        rate=rate,
        steps=steps,
        check=audit.budget.check,
        then=then,
    )


def _batches(audit: UnderWay) -> list[Batch]:
    return batches_of(audit.texts.victims, audit.subject.config.train.batch_size)


def _read(audit: UnderWay, made: CutModel, wire: WireConfig, inverter: Fitted) -> torch.Tensor:
    """(N, T): the victims, of what the silo would send with its adapter as it is."""
    seed, check = audit.settings.seed, audit.budget.check
    recording = made.record_h1(audit.texts.victims, wire, seed=seed, check=check)
    return inverter.reconstruct(recording, check)
