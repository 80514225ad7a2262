"""Instrument checks fail where the instrument is broken, each by the fault that it is for."""

from dataclasses import replace
from typing import Any

import torch
from audit_texts import known, noise, recording, table, texts

from flower_split.audit import controls
from flower_split.audit.attacks.canaries import CanariesPlanted
from flower_split.audit.attacks.hijacking import Hijacked
from flower_split.audit.attacks.learning import Fitted, Inverter
from flower_split.audit.attacks.matching import Matched
from flower_split.audit.attacks.nearest import nearest
from flower_split.audit.attacks.rows import RowsTold
from flower_split.audit.attacks.span import SpanCheck
from flower_split.audit.attacks.step_matching import StepsMatched
from flower_split.audit.metrics import best_constant
from flower_split.audit.outcome import AttackResult
from flower_split.config.wire import WireConfig


def attack(**changed: Any) -> AttackResult:
    held: dict[str, Any] = {
        "key": "F1",
        "name": "an attack",
        "party": "T",
        "knows": "nothing",
        "recording": "",
        "seconds": 0.0,
    }
    return AttackResult(**(held | changed))


def test_the_positive_control() -> None:
    assert controls.positive(0.99).passed and not controls.positive(0.98).passed


def test_an_injected_leak_is_found_and_one_that_is_passed_over_is_told() -> None:
    given, rows = texts(60), table()
    silent = noise(given.victims)
    plain = recording(given.victims, rows).h1
    leaking, leaks = controls.injected(silent, plain, seed=0)
    assert leaking.digest != silent.digest and int(leaks.sum()) >= 4
    before = nearest(silent, known(rows), "cosine")
    after = nearest(leaking, known(rows), "cosine")
    assert controls.injected_found(before, after, leaks, given).passed
    # What is right there by chance cannot rise.
    row, place = leaks.nonzero()[0].tolist()
    lucky = before.clone()
    lucky[row, place] = given.victims.ids[row, place]
    assert controls.injected_found(lucky, after, leaks, given).passed
    # An instrument that looks at a table of another model.
    blind = nearest(leaking, known(table(9)), "cosine")
    assert not controls.injected_found(before, blind, leaks, given).passed
    # One that finds it, and does not count it.
    assert not controls.injected_found(after, after, leaks, given).passed


def test_shuffled_targets_catch_who_reads_the_truth() -> None:
    given = texts(60)
    honest = attack(found=given.victims.ids)
    assert controls.shuffled([honest], given, seed=0).passed
    scored = given.victims.scored
    order = torch.randperm(int(scored.sum()), generator=torch.Generator().manual_seed(0))
    peeking = given.victims.ids.clone()
    peeking[scored] = given.victims.ids[scored][order]
    # As if what is scored against were what the attack was told.
    assert not controls.shuffled([attack(found=peeking)], given, seed=0).passed


def test_noise_must_leave_nothing() -> None:
    given = texts(60)
    constant = torch.full_like(given.victims.ids, int(given.prior.argmax()))
    base = best_constant(given)
    even, told = RowsTold(auc=0.52, zero_rows=0.0, others=90), given.victims.ids
    assert controls.noise({"F1": constant}, {"B2": (base, base, 400)}, even, given).passed
    assert not controls.noise({"F1": told}, {}, even, given).passed
    assert not controls.noise({"F1": constant}, {"B2": (0.9, base, 400)}, even, given).passed
    zero = replace(even, auc=1.0)
    assert not controls.noise({"F1": constant}, {}, zero, given).passed


def test_the_noise_is_a_hundred_times_the_signal() -> None:
    given = texts()
    seen = recording(given.victims, table())
    wire = controls.deafening(WireConfig(h1="int8"), replace(seen, g2=0.01 * seen.h1))
    norms = seen.h1.norm(dim=-1)
    assert wire.h1 == "int8" and wire.g2_clip < 0.1
    deviation = wire.deviation_of("h1") * seen.h1.shape[-1] ** 0.5
    assert abs(deviation / float(norms[norms > 0].median()) - 100) < 1e-3


def check(tokens: int, found: float, false: float = 0.0) -> SpanCheck:
    return SpanCheck(tokens=tokens, rank=8, applicable=tokens <= 8, found=found, false=false)


def test_the_span_check_succeeds_exactly_up_to_the_rank() -> None:
    assert controls.span([check(4, 1.0), check(8, 1.0), check(9, 0.0)]).passed
    assert not controls.span([check(4, 0.9)]).passed
    assert not controls.span([check(4, 1.0, false=0.5)]).passed
    assert not controls.span([check(4, 1.0), check(9, 1.0)]).passed
    assert not controls.span([]).passed
    assert not controls.span([check(9, 0.0)]).passed  # none of which anything is to be found


def test_inverters_must_have_converged() -> None:
    rows = table()
    network = Inverter(
        "linear",
        mean=torch.zeros(24),
        scale=torch.ones(24),
        start=torch.eye(24),
        table=rows,
        prior=torch.ones(len(rows)),
        tokens=4,
    )
    done = Fitted(architecture="linear", network=network, steps=9, converged=True, loss=0.0)
    under = replace(done, converged=False)
    matched = Matched(found=torch.zeros(1, 4), steps=9, converged=True, error=0.0)
    assert controls.converged({"linear": done}, {"F4": matched}).passed
    assert not controls.converged({"linear": done, "GRU": under}, {}).passed
    assert "GRU" in controls.converged({"GRU": under}, {}).measured
    early = replace(matched, converged=False)
    assert "F4" in controls.converged({"linear": done}, {"F4": early}).measured
    assert not controls.converged({"linear": done}, {"F4": early}).passed


def test_continuous_matching_finds_everything_without_layers() -> None:
    assert controls.matching(1.0).passed and not controls.matching(0.98).passed


def test_gradient_matching_computes_the_silo_s_steps_and_mends_a_token() -> None:
    good = StepsMatched(
        tokens=5,
        steps=2,
        found=1,
        fit=0.4,
        true_fit=1.0,
        other_fit=0.2,
        mended=True,
        converged=True,
    )
    assert controls.step_matching([good, good]).passed
    assert not controls.step_matching([]).passed
    for broken in (
        {"true_fit": 0.9},
        {"other_fit": 0.995},
        {"mended": False},
        {"converged": False},
    ):
        assert not controls.step_matching([good, replace(good, **broken)]).passed


def test_canaries_are_found_where_they_were_trained_on_and_only_there() -> None:
    planted = CanariesPlanted(found=1.0, untrained=0.1, passes=50)
    assert controls.canaries(planted).passed
    assert not controls.canaries(replace(planted, found=0.75)).passed
    assert not controls.canaries(replace(planted, untrained=1.0)).passed


def test_a_hijacking_trunk_must_lead_and_find_nothing_under_noise() -> None:
    given = texts(60)
    led = Hijacked(steps=60, answered=60, before=0.2, after=0.05)
    honest = replace(led, answered=0, after=0.3)
    base = best_constant(given)
    assert controls.hijacking(led, honest, base, given, converged=True).passed
    assert not controls.hijacking(led, honest, base, given, converged=False).passed
    assert not controls.hijacking(led, honest, 0.9, given, converged=True).passed
    stays = replace(led, after=0.19)
    assert not controls.hijacking(stays, honest, base, given, converged=True).passed
    assert not controls.hijacking(
        led, replace(honest, after=0.01), base, given, converged=True
    ).passed


def test_all_attacks_are_on_one_recording_that_nobody_changed() -> None:
    seen = recording(texts().victims, table())
    made = attack(recording=seen.digest)
    assert controls.one_recording([made], seen).passed
    assert not controls.one_recording([made, attack(recording="another")], seen).passed
    seen.h1[0, 0] += 1
    assert not controls.one_recording([made], seen).passed
