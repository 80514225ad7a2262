"""An audit from its beginning to its end: recording, attacks, instrument checks, other settings."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from flower_split.audit.attacking import Say
from flower_split.audit.describing import described
from flower_split.audit.on_training import hijack, tell_trained
from flower_split.audit.on_updates import check_span, match_steps
from flower_split.audit.outcome import Outcome
from flower_split.audit.own_cut import attack_own_cut, attack_trunk_alone, positive_control
from flower_split.audit.policy import Policy
from flower_split.audit.settings import AuditSettings, Budget, BudgetUsedUpError
from flower_split.audit.subject import Subject
from flower_split.audit.sweeps import sweep_codecs, sweep_depths
from flower_split.audit.texts import AuditTexts
from flower_split.audit.under_way import UnderWay

Step = Callable[[UnderWay], None]
STEPS: tuple[tuple[str, Step], ...] = (
    ("positive control", positive_control),
    ("attacks and controls at the run's own cut and wire", attack_own_cut),
    ("attacks of the trunk's operator without the silos' adapters", attack_trunk_alone),
    ("U1", check_span),
    ("U2", match_steps),
    ("M1", tell_trained),
    ("H1", hijack),
)
SWEEPS: tuple[tuple[str, Step], ...] = (
    ("other cuts", sweep_depths),
    ("other codecs", sweep_codecs),
)


def run_audit(
    subject: Subject,
    texts: AuditTexts,
    policy: Policy,
    *,
    settings: AuditSettings,
    budget: Budget,
    sweeps: bool = True,
    say: Say = lambda text: None,
) -> Outcome:
    """Audit a subject, until everything was run or the budget is used up.

    Args:
        subject: Model, cut, wire and adapter.
        texts: Those that are attacked, and those that an attacker learns from.
        policy: How much may be found.
        settings: How much is tried.
        budget: How long it may take.
        sweeps: Whether other cuts and codecs are looked at too.
        say: Takes what is being done, in words.

    Raises:
        ConfigError: the policy's file was changed meanwhile.
        FlowerSplitError: the model cannot be cut there, or does not compute.
    """

    def fixed(text: str) -> None:
        policy.check_unchanged()
        say(text)

    began = time.process_time()
    outcome = Outcome(
        subject=described(subject, texts, settings, budget),
        policy=policy,
        documents=len(texts.victims),
    )
    audit = UnderWay(
        subject=subject,
        texts=texts,
        settings=settings,
        budget=budget,
        say=fixed,
        outcome=outcome,
    )
    if not sweeps:
        outcome.not_run["other cuts and codecs"] = "not asked for"
    steps = (*STEPS, *SWEEPS) if sweeps else STEPS
    with _own_random_numbers(settings.seed):
        for place, (_, step) in enumerate(steps):
            try:
                step(audit)
            except BudgetUsedUpError:
                outcome.used_up = True
                left = "the budget was used up, or not all of it was run"
                outcome.not_run |= {name: left for name, _ in steps[place:]}
                break
    outcome.seconds, outcome.processor_seconds = budget.spent, time.process_time() - began
    policy.check_unchanged()
    return outcome


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
