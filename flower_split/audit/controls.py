"""Instrument checks: an audit that fails one of them has measured nothing, and gives no verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flower_split.audit import metrics
from flower_split.audit.attacks.canaries import CanariesPlanted
from flower_split.audit.attacks.hijacking import Hijacked
from flower_split.audit.attacks.learning import Fitted
from flower_split.audit.attacks.matching import Matched
from flower_split.audit.attacks.rows import RowsTold
from flower_split.audit.attacks.span import SpanCheck
from flower_split.audit.attacks.step_matching import StepsMatched
from flower_split.audit.outcome import AttackResult, Control
from flower_split.audit.recording import Recording
from flower_split.audit.texts import AuditTexts
from flower_split.config.wire import WireConfig

POSITIVE = 0.99
INJECTED = 0.01
FOUND = 0.9
SIGNALS = 100.0
"""Noise over signal at which nothing can be found."""
DEVIATIONS = 4.0
SLACK = 0.01
TRUE_FIT = 0.99
"""Cosine of a text's own steps with what was sent, at least."""
UNTRAINED = 0.5
"""Share of canaries that nobody trained on at which something else than training is told."""
DOUBT = 0.7
"""Part of an inverter's doubt that a hijacking trunk leaves at most."""
CERTAIN = 0.01
"""Doubt, in nats, with which nothing is left to gain."""


def positive(found: float) -> Control:
    """Without layers, codec or noise the nearest neighbour finds everything.

    Args:
        found: Share of tokens.
    """
    return Control(
        name="positive control",
        passed=found >= POSITIVE,
        measured=f"no layers, nearest neighbour: {found:.1%} of tokens, expected {POSITIVE:.0%}",
    )


def matching(found: float) -> Control:
    """Without layers, continuous matching finds everything, from a start that knows nothing.

    Args:
        found: Share of tokens.
    """
    return Control(
        name="continuous matching",
        passed=found >= POSITIVE,
        measured=f"no layers, from no belief: {found:.1%} of tokens, expected {POSITIVE:.0%}",
    )


def injected(recording: Recording, plain: Tensor, *, seed: int) -> tuple[Recording, Tensor]:
    """A recording in which 1 % of the rows are as they were without a defence, and which, (N, T).

    Args:
        recording: In which nothing can be found.
        plain: (N, T, H): h1 of the same texts without layers.
        seed: Of the choice.
    """
    places = recording.mask.clone()
    places[:, 0] = False
    rows = places.nonzero()
    count = max(1, math.ceil(INJECTED * len(rows)))
    picks = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]]
    leaks = torch.zeros_like(places)
    leaks[picks[:, 0], picks[:, 1]] = True
    h1 = torch.where(leaks[..., None], plain, recording.h1)
    return recording.with_h1(h1), leaks


def injected_found(before: Tensor, after: Tensor, leaks: Tensor, texts: AuditTexts) -> Control:
    """An injected leak of 1 % is found, and counted.

    Args:
        before: (N, T): what was found without it.
        after: (N, T): and with it.
        leaks: (N, T): where it is.
        texts: With the truth.
    """
    ids, scored = texts.victims.ids, texts.victims.scored
    there = leaks & scored
    rows, total = int(there.sum()), float(scored.sum())
    share = float((after == ids)[there].double().mean())
    risen = float(((after == ids) & scored).sum() - ((before == ids) & scored).sum()) / total
    # What was right there before by chance cannot rise.
    constant = metrics.best_constant(texts)
    by_chance = constant * rows + DEVIATIONS * math.sqrt(constant * (1 - constant) * rows)
    already = min(float((before == ids)[there].sum()), by_chance)
    expected = (FOUND * rows - already) / total
    return Control(
        name="injected leak",
        passed=share >= FOUND and risen >= expected,
        measured=(
            f"of {rows} leaking rows {share:.0%} found, expected {FOUND:.0%}; the "
            f"total rose by {risen:.2%}, expected {expected:.2%}"
        ),
    )


def shuffled(attacks: Sequence[AttackResult], texts: AuditTexts, *, seed: int) -> Control:
    """Of targets in a random order no attack has more than by chance."""
    worst, passed = "no attack reconstructs a text", True
    gap = -1.0
    for one in attacks:
        if one.found is None:
            continue
        rows = list(range(len(one.found)))
        measured = metrics.shuffled(one.found, texts, seed=seed, rows=rows)
        chance = metrics.chance(one.found, texts, rows)
        allowed = chance + margin(chance, int(texts.victims.scored[rows].sum()))
        passed = passed and measured <= allowed
        if measured - chance > gap:
            gap = measured - chance
            worst = f"{one.name}: {measured:.1%} of shuffled tokens, by chance {chance:.1%}"
    return Control(name="shuffled targets", passed=passed, measured=worst)


def deafening(wire: WireConfig, recording: Recording) -> WireConfig:
    """The wire with noise of a hundred times the signal on h1 and g2.

    Args:
        wire: The run's own.
        recording: Of the run's own wire, by which the signal's strength is known.
    """
    changed: dict[str, float] = {}
    for hop, tensor in (("h1", recording.h1), ("g2", recording.g2)):
        if tensor is None:
            continue
        norms = tensor.norm(dim=-1)
        norms = norms[norms > 0]
        clip = float(norms.median()) if len(norms) else 1.0
        changed[f"{hop}_clip"] = clip
        changed[f"{hop}_noise"] = SIGNALS / math.sqrt(tensor.shape[-1])
    return replace(wire, **changed)  # type: ignore[arg-type]


def noise(
    found: Mapping[str, Tensor],
    labels: Mapping[str, tuple[float, float, int]],
    told: RowsTold | None,
    texts: AuditTexts,
) -> Control:
    """Under that noise everything is at its baseline.

    Args:
        found: By attack what was reconstructed of the first D texts, (D, T).
        labels: By attack the share of labels, its baseline, and how many labels there are.
        told: What norms tell.
        texts: With the truth.
    """
    said, passed = list[str](), True
    scored = texts.victims.scored
    constant = metrics.best_constant(texts)
    for name, tokens in found.items():
        own = scored[: len(tokens)]
        share = float((tokens == texts.victims.ids[: len(tokens)])[own].double().mean())
        passed = passed and share <= constant + margin(constant, int(own.sum()))
        said.append(f"{name} {share:.1%} of tokens (the most frequent one is {constant:.1%})")
    for name, (share, baseline, count) in labels.items():
        passed = passed and share <= baseline + margin(baseline, count)
        said.append(f"{name} {share:.1%} of labels (baseline {baseline:.1%})")
    if told is not None:
        passed = passed and abs(told.auc - 0.5) <= 0.1 + DEVIATIONS / math.sqrt(12 * told.others)
        said.append(f"B1 an AUC of {told.auc:.2f}")
    return Control(
        name=f"noise of {SIGNALS:.0f} x the signal", passed=passed, measured="; ".join(said)
    )


def span(checks: Sequence[SpanCheck]) -> Control:
    """The span check finds all where a step has no more tokens than the rank, and only there."""
    said = "; ".join(
        f"{one.tokens} tokens at rank {one.rank}: {one.found:.0%} found, {one.false:.1%} false"
        for one in checks
    )
    passed = all(
        one.found == 1.0 and one.false <= SLACK if one.applicable else one.found <= 0.5
        for one in checks
    )
    told = any(one.applicable for one in checks)
    return Control(name="span check", passed=passed and told, measured=said)


def converged(fitted: Mapping[str, Fitted], matched: Mapping[str, Matched]) -> Control:
    """Every inverter's held-out loss has stopped to fall, and so has what was matched."""
    ended: dict[str, Fitted | Matched] = {**fitted, **matched}
    under = [name for name, one in ended.items() if not one.converged]
    steps = ", ".join(f"{name} after {one.steps} steps" for name, one in ended.items())
    return Control(
        name="inverters converged",
        passed=not under and bool(fitted),
        measured=f"under-trained: {', '.join(under)}" if under else steps,
    )


def step_matching(matched: Sequence[StepsMatched]) -> Control:
    """The aggregator's copy of the steps is the silo's, and the search mends one wrong token."""
    said = "; ".join(
        f"the text fits by {one.true_fit:.3f}, another by {one.other_fit:.2f}, one wrong token "
        f"{'mended' if one.mended else 'left'}"
        + ("" if one.converged else ", the search had not come to its end")
        for one in matched
    )
    return Control(
        name="gradient matching",
        passed=bool(matched)
        and all(
            one.true_fit >= TRUE_FIT and one.other_fit < TRUE_FIT and one.mended and one.converged
            for one in matched
        ),
        measured=said or "no update was matched",
    )


def canaries(planted: CanariesPlanted) -> Control:
    """Canaries that are trained on many times are found, and untrained ones are not."""
    return Control(
        name="canaries",
        passed=planted.found >= POSITIVE and planted.untrained < UNTRAINED,
        measured=(
            f"trained on {planted.passes} times: {planted.found:.0%} found, expected 100%; "
            f"untrained: {planted.untrained:.0%}, expected below {UNTRAINED:.0%}"
        ),
    )


def hijacking(
    hijacked: Hijacked, honest: Hijacked, deaf: float, texts: AuditTexts, *, converged: bool
) -> Control:
    """A trunk that hijacks makes its inverter certain, an honest one does not as much; under noise
    of a hundred times the signal it finds nothing.

    Args:
        hijacked: Of the control's training, without noise.
        honest: The same on a trunk that looks on.
        deaf: Share of tokens that it found under the noise.
        texts: With the truth.
        converged: Whether the inverters that were trained afterwards have.
    """
    constant = metrics.best_constant(texts)
    falls = hijacked.after <= max(DOUBT * hijacked.before, CERTAIN)
    silent = deaf <= constant + margin(constant, int(texts.victims.scored.sum()))
    return Control(
        name="hijacking",
        passed=falls and hijacked.after <= honest.after and silent and converged,
        measured=(
            f"the inverter's doubt over {hijacked.steps} steps: from {hijacked.before:.3g} to "
            f"{hijacked.after:.3g} nats, expected {max(DOUBT * hijacked.before, CERTAIN):.3g}; on "
            f"an honest trunk {honest.after:.3g}; with noise of {SIGNALS:.0f} x the signal "
            f"{deaf:.1%} of tokens (the most frequent one is {constant:.1%})"
            + ("" if converged else "; the inverter that was trained again is under-trained")
        ),
    )


def one_recording(attacks: Sequence[AttackResult], recording: Recording) -> Control:
    """All attacks were made on one recording, which none has changed."""
    now = recording.digest_now()
    others = {one.key for one in attacks if one.recording != now}
    return Control(
        name="one recording",
        passed=not others,
        measured=f"of another one: {', '.join(sorted(others))}" if others else f"sha256 {now}",
    )


def margin(baseline: float, count: int) -> float:
    """What chance may add to a share of `count` of which `baseline` is expected."""
    return SLACK + DEVIATIONS * math.sqrt(baseline * (1 - baseline) / max(1, count))
