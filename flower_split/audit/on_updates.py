"""On an adapter's update: what the aggregator finds in what a silo's steps add to it."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from flower_split.audit import controls, metrics
from flower_split.audit.attacks import step_matching
from flower_split.audit.attacks.simulated_steps import SimulatedSteps, simulated_steps
from flower_split.audit.attacks.span import (
    SpanCheck,
    numerical_rank,
    rank_of_step,
    sizes,
    span_check,
)
from flower_split.audit.attacks.step_matching import Sent, StepMatching, StepsMatched
from flower_split.audit.attacks.updates import Inputs, first_factors, step_gradient
from flower_split.audit.outcome import AttackResult
from flower_split.audit.under_way import UnderWay
from flower_split.config.wire import WireConfig
from flower_split.training.loop import steps_in_round

KNOWS = "the current adapters"


def check_span(audit: UnderWay) -> None:
    """U1: the span check, on the gradient and on what AdamW makes of it."""
    if not audit.subject.config.peft.is_plain and audit.subject.adapter is None:
        audit.outcome.not_run["U1"] = "inapplicable: the adapter is not plain LoRA"
        return
    bottom, top = audit.cuts
    if not bottom:
        audit.outcome.not_run["U1"] = (
            "inapplicable: the first layer is the trunk's, whose operator has its inputs"
        )
        return
    audit.say("U1 span check of the adapter's gradient")
    checks, updates = list[SpanCheck](), list[SpanCheck]()
    subject = audit.subject
    with subject.cut(bottom, top, trains=True) as model, model.steps(audit.wire) as steps:
        factors = first_factors(steps.client, steps.bottom)
        if factors is None:
            audit.outcome.not_run["U1"] = "inapplicable: the first layer has no LoRA on its input"
            return
        inputs = Inputs(factors, audit.texts.vocabulary)
        ids = _distinct(audit)
        if subject.adapter is None:
            # LoRA begins with a factor of zeros, which has the other one's gradient be zero.
            steps.begin(ids)
        # The last token is a label alone, of which nothing with a gradient is computed but noise.
        noisy = any(audit.wire.deviation_of(hop) for hop in ("g2", "g1"))
        rank = numerical_rank(torch.cat(steps.gradients(ids, factors.weights)).cpu())
        for size in sizes(rank, len(ids) - 1):
            audit.budget.check()
            text = ids[: max(2, size + (not noisy))]
            gradients = steps.gradients(text, factors.weights)
            made = torch.cat(gradients).cpu()
            given = text if noisy else text[:-1]
            usual = rank_of_step(made, len(given), rank)
            step = step_gradient(inputs, given, made, rank=usual)
            checks.append(span_check(step))
            made = torch.cat(steps.update(factors.weights, gradients)).cpu()
            updates.append(span_check(replace(step, gradient=made)))
    audit.outcome.controls.append(controls.span(checks))
    applicable = [one for one in updates if one.applicable]
    audit.outcome.attacks.append(
        AttackResult(
            key="U1",
            name="span check of what one step of AdamW over one short text sends",
            party="A",
            knows=KNOWS,
            recording=audit.outcome.recordings["own"],
            seconds=0.0,
            share=_exactly(max((one.found * (one.false < 0.5) for one in applicable), default=0.0)),
            detail={
                "factors": len(factors.names),
                "gradient": [one.fields for one in checks],
                "update-of-adamw": [one.fields for one in updates],
            },
        )
    )


def match_steps(audit: UnderWay) -> None:
    """U2: short texts, by what a few of the silo's local steps over each of them send."""
    if why := _unmatchable(audit):
        audit.outcome.not_run["U2"] = f"inapplicable: {why}"
        return
    began = audit.budget.spent
    subject, victims = audit.subject, audit.texts.victims
    train = subject.config.train
    # A loaded adapter is one that both ends compute with as it is: no pass follows a step.
    most = step_matching.STEPS if subject.adapter is None else 1
    count = min(most, steps_in_round(train, -(-len(victims) // train.batch_size)))
    audit.say(f"U2 gradient matching over {count} steps")
    texts = [victims.ids[row][: step_matching.TOKENS] for row in range(step_matching.TEXTS)]
    with subject.cut(*audit.cuts, trains=True) as model:
        with model.steps(audit.wire) as steps:
            start = steps.trained()
            sent = [_sent(text, count, steps.moved(text, count)) for text in texts]
        # What the control compares: as exact as it can be.
        with model.steps(WireConfig()) as steps:
            plain = [_sent(text, count, steps.moved(text, count, training=False)) for text in texts]
    with simulated_steps(subject, start) as simulated:
        found = [
            _matched(audit, simulated, *of_text) for of_text in zip(texts, sent, plain, strict=True)
        ]
    audit.outcome.controls.append(controls.step_matching(found))
    share = sum(one.found for one in found) / sum(one.tokens for one in found)
    audit.outcome.attacks.append(
        AttackResult(
            key="U2",
            name=f"gradient matching of {len(found)} texts of {step_matching.TOKENS} tokens, by "
            f"{count} steps of AdamW over each",
            party="A",
            knows=f"{KNOWS}, the number of tokens and steps",
            recording=audit.outcome.recordings["own"],
            seconds=audit.budget.spent - began,
            share=_exactly(share),
            detail={
                "texts": [one.fields for one in found],
                "most-frequent-token": metrics.best_constant(audit.texts),
            },
        )
    )


def _sent(text: torch.Tensor, steps: int, update: Mapping[str, torch.Tensor]) -> Sent:
    return Sent(update=update, tokens=len(text), steps=steps)


def _matched(
    audit: UnderWay, simulated: SimulatedSteps, text: torch.Tensor, sent: Sent, plain: Sent
) -> StepsMatched:
    """One text: the attack on what was sent, and its control on what would be without a wire."""
    attack, control = (
        StepMatching(simulated, one, audit.texts.prior, audit.budget.check) for one in (sent, plain)
    )
    public = audit.texts.public.ids
    known = int(len(public[:, 0].unique()) == 1 and bool(public[0, 0] == text[0]))
    rows = [row for row in public[:, : len(text)] if not torch.equal(row, text)]
    often = torch.full_like(text, int(audit.texts.prior.argmax()))
    starts = [_with(text[:known], one) for one in (often, *rows[: step_matching.STARTS - 1])]
    found, ended = attack.matched(starts, known)
    wrong = text.clone()
    wrong[-1] = next(one for one in often.new_tensor([1, 2, 3]) if one != text[-1])
    mended, _ = control.searched(wrong, range(len(text) - 1, len(text)))
    right = (found == text)[known:]
    return StepsMatched(
        tokens=len(right),
        steps=attack.steps,
        found=int(right.sum()),
        fit=1 - attack.gap(found),
        true_fit=1 - control.gap(text),
        other_fit=1 - control.gap(rows[0]),
        mended=torch.equal(mended, text),
        converged=ended,
    )


def _with(known: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    return torch.cat([known, start[len(known) :]])


def _unmatchable(audit: UnderWay) -> str:
    """Why steps cannot be computed as the silo does; empty where they can."""
    config, victims = audit.subject.config, audit.texts.victims
    if not config.peft.is_plain and audit.subject.adapter is None:
        return "the adapter is not plain LoRA"
    if config.model.quantization != "none":
        return "quantised weights have no second derivative"
    if config.model.dtype != "float32" or config.train.autocast != "off":
        return "its steps are compared in float32, and the run computes in less"
    if not any(audit.cuts):
        return "the whole adapter is the trunk's, whose operator has its inputs"
    if int(victims.mask[: step_matching.TEXTS].sum(1).min()) < step_matching.TOKENS:
        return f"the texts have fewer than {step_matching.TOKENS} tokens"
    return ""


def _exactly(share: float) -> metrics.Share:
    return metrics.Share(value=share, low=share, high=share)


def _distinct(audit: UnderWay) -> torch.Tensor:
    """Different tokens of the victims, as they come, as long as a text is."""
    victims = audit.texts.victims
    found = dict.fromkeys(victims.ids[victims.scored].tolist())
    return torch.tensor(list(found)[: victims.ids.shape[1]])
