"""At the run's own cut and wire: every attack on what is sent there, and the controls they need."""

from dataclasses import replace

import torch

from flower_split.audit import controls, metrics
from flower_split.audit.attacking import Attacker
from flower_split.audit.attacks.labels import right_labels
from flower_split.audit.attacks.matching import match
from flower_split.audit.attacks.nearest import MEASURES, embeddings, nearest
from flower_split.audit.recording import Recording
from flower_split.audit.subject import CutModel
from flower_split.audit.under_way import UnderWay
from flower_split.config.wire import WireConfig


def positive_control(audit: UnderWay) -> None:
    """No layers, no codec: whoever finds nothing here has a broken instrument."""
    audit.say("positive control: no layers")
    texts, check = audit.texts, audit.budget.check
    with audit.subject.cut(0, audit.cuts[1]) as model:
        with model.bottoms() as bottom:
            tokens = texts.victims.ids.shape[1]
            known = embeddings(bottom, texts.vocabulary, tokens)
        plain = model.record_h1(texts.victims, WireConfig(), seed=audit.settings.seed)
        audit.known, audit.plain = known, plain
        audit.outcome.recordings["positive control"] = plain.digest
        best = max(audit.token_share(nearest(plain, known, one, check=check)) for one in MEASURES)
        audit.outcome.controls.append(controls.positive(best))
        documents = min(audit.settings.search_documents, len(texts.victims))
        shape = (documents, plain.mask.shape[1], texts.vocabulary)
        nothing = texts.prior.log().expand(shape)
        with model.embedded_bottoms() as (table, bottom_of):
            made = match(plain, nothing, table, bottom_of, WireConfig(), check=check)
        audit.outcome.controls.append(controls.matching(audit.token_share(made.found)))


def attack_own_cut(audit: UnderWay) -> None:
    """All attacks on what the run's own settings send, and the controls that need them."""
    with audit.subject.cut(*audit.cuts) as model:
        recording = audit.recorded(model, audit.wire, "own")
        attacker = audit.attacker(model, audit.wire, recording)
        audit.outcome.attacks = attacker.results
        try:
            attacker.nearest()
            attacker.inverters()
            audit.architecture = attacker.best_architecture
            attacker.search()
            attacker.matching()
            attacker.rows()
            if attacker.told is None:
                audit.outcome.not_run["B1"] = "inapplicable: every row that is sent has a loss"
            attacker.labels()
        finally:
            audit.fitted |= attacker.fitted
        _note_matching(audit, attacker, "F4")
        _deafen(audit, model, recording)
    audit.recording = recording
    audit.base = attacker.fitted[audit.architecture]
    audit.outcome.controls += [
        controls.shuffled(attacker.results, audit.texts, seed=audit.settings.seed),
        controls.one_recording(attacker.results, recording),
    ]


def attack_trunk_alone(audit: UnderWay) -> None:
    """The same attacks of T, who is not A: with the base weights in place of the adapter's."""
    if audit.subject.adapter is not None:  # else T has made them all
        _without_adapters(audit)
    audit.outcome.controls.append(controls.converged(audit.fitted, audit.matched))
    audit.outcome.is_complete = True


def _without_adapters(audit: UnderWay) -> None:
    assert audit.recording is not None
    audit.say("the trunk's operator alone, without the silos' adapters")
    with replace(audit.subject, adapter=None).cut(*audit.cuts) as base:
        attacker = audit.attacker(base, audit.wire, audit.recording, adapted=False)
        attacker.inverters((audit.architecture,))
        attacker.search()
        attacker.matching()
        attacker.labels()
    _note_matching(audit, attacker, "F4, by T alone")
    audit.base = attacker.fitted[audit.architecture]
    audit.outcome.attacks += attacker.results
    audit.fitted |= {f"{name}, by T alone": one for name, one in attacker.fitted.items()}


def _note_matching(audit: UnderWay, attacker: Attacker, name: str) -> None:
    assert attacker.matched is not None
    audit.matched[name] = attacker.matched


def _deafen(audit: UnderWay, model: CutModel, recording: Recording) -> None:
    """The controls under noise of a hundred times the signal."""
    assert audit.known is not None and audit.plain is not None
    texts, check = audit.texts, audit.budget.check
    wire = controls.deafening(audit.wire, recording)
    deaf = audit.recorded(model, wire, "noise control")
    attacker = audit.attacker(model, wire, deaf, quiet=True)
    audit.say("noise control: a hundred times the signal")
    attacker.nearest()
    attacker.inverters(tuple(dict.fromkeys(("linear", audit.architecture))))
    attacker.matching()
    attacker.rows()
    made = attacker.labels()
    audit.fitted |= {f"{name}, noise": one for name, one in attacker.fitted.items()}
    audit.deaf = wire, attacker.fitted[audit.architecture]
    victims = texts.victims
    count = int(right_labels(made.guess, victims)[1].sum())

    def share(found: torch.Tensor) -> float:
        return float(right_labels(found, victims)[0].sum()) / count

    baseline = max(share(made.guess), metrics.best_constant(texts))
    labels = {"B2": (share(made.one_pass), baseline, count)}
    if made.refined is not None:
        labels["B3"] = (share(made.refined), baseline, count)
    found = {f"{one.key} {one.name}": one.found for one in attacker.results}
    told = {name: one for name, one in found.items() if one is not None}
    audit.outcome.controls.append(controls.noise(told, labels, attacker.told, texts))
    leaking, leaks = controls.injected(deaf, audit.plain.h1, seed=audit.settings.seed)
    audit.outcome.recordings["injected leak"] = leaking.digest
    audit.outcome.controls.append(
        controls.injected_found(
            nearest(deaf, audit.known, "cosine", check=check),
            nearest(leaking, audit.known, "cosine", check=check),
            leaks,
            texts,
        )
    )
