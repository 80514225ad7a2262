"""The outcome of an audit: what every attack found, whether the instrument works, the verdict."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flower_split.audit.metrics import Recovery, Share
from flower_split.audit.policy import Policy

SCHEMA = "flower-split audit 1"
PASSED, LEAK, INSTRUMENT, USED_UP = 0, 3, 4, 5
"""Exit statuses; 1 is bad input, and 2 a bad command line."""
VERDICTS = {
    PASSED: "pass",
    LEAK: "leak above the policy",
    INSTRUMENT: "no verdict: an instrument check failed",
    USED_UP: "no verdict: the budget was used up",
}
LOWER_BOUND = (
    "An audit is a lower bound on leakage: a low number means that these attacks failed, and not "
    "that no other would succeed."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackResult:
    """What one attack found."""

    key: str
    """Short, such as `F1`."""
    name: str
    party: str
    """Who can make it: `T` the trunk's operator, `A` the aggregator, `A+T` both in one, `M` whoever
    has the final adapter."""
    knows: str
    """What is taken as known."""
    recording: str
    """Digest of what it was made on."""
    seconds: float
    recovery: Recovery | None = None
    """Of the texts, where it reconstructs any."""
    labels: Share | None = None
    """Of labels that it found, where it looks for them."""
    guess: Share | None = None
    """Of labels that the model guesses without the gradient."""
    share: Share | None = None
    """Of what the attack finds where that is neither."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    found: Tensor | None = None
    """(N, T): the texts themselves, which no report has but the local one."""

    @property
    def above_guess(self) -> float | None:
        """Labels less the model's own guess, by the upper end of the interval."""
        if self.labels is None or self.guess is None:
            return None
        return self.labels.high - self.guess.value

    @property
    def fields(self) -> dict[str, Any]:
        """As a report holds it."""
        return {
            "attack": self.key,
            "name": self.name,
            "party": self.party,
            "knows": self.knows,
            "recording": self.recording,
            "seconds": round(self.seconds, 2),
            "recovery": None if self.recovery is None else self.recovery.fields,
            "labels": None if self.labels is None else self.labels.fields,
            "model-guess": None if self.guess is None else self.guess.fields,
            "share": None if self.share is None else self.share.fields,
            "detail": dict(self.detail),
        }


@dataclass(frozen=True, kw_only=True)
class Control:
    """One check of the instrument."""

    name: str
    passed: bool
    measured: str
    """What was measured, and what was expected."""


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """What attacks find under another setting than the run's own."""

    kind: str
    """`depth` or `codec`."""
    setting: str
    bottom_layers: int
    top_layers: int
    shares: Mapping[str, float]
    """By attack: tokens of the texts, or labels."""
    converged: bool


@dataclass(kw_only=True)
class Outcome:
    """Everything that an audit came to, as it goes on."""

    subject: Mapping[str, Any]
    """What was audited: model, cut, wire, adapter, versions, seed."""
    policy: Policy
    documents: int
    recordings: dict[str, str] = field(default_factory=dict)
    """Digests by name."""
    attacks: list[AttackResult] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    sweep: list[SweepPoint] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    """Attacks, and why they were not made."""
    is_complete: bool = False
    """Whether all attacks at the run's own cut and all their checks were run."""
    used_up: bool = False
    seconds: float = 0.0
    processor_seconds: float = 0.0
    """Of all of the process's threads together."""

    @property
    def status(self) -> int:
        """Exit status. A leak that a working instrument has found stays one without time left."""
        if any(not one.passed for one in self.controls):
            return INSTRUMENT
        if not self.is_complete:
            return USED_UP
        if self.above:
            return LEAK
        return USED_UP if self.used_up else PASSED

    @property
    def above(self) -> list[str]:
        """Limits of the policy that the strongest attack exceeds."""
        return [
            name
            for name, (value, _) in self.strongest().items()
            if value > self.policy.limits.get(name, 1.0)
        ]

    def strongest(self) -> dict[str, tuple[float, str]]:
        """Of all that a policy can limit the most that was found, and by which attack.

        Of shares the upper end of the interval.
        """
        best = dict[str, tuple[float, str]]()
        for attack in self.attacks:
            for name, value in _measured(attack):
                if name not in best or value > best[name][0]:
                    best[name] = (value, attack.key)
        return best

    @property
    def sentence(self) -> str:
        """What was run and what not."""
        ran = ", ".join(dict.fromkeys(one.key for one in self.attacks)) or "nothing"
        unmeasured = {
            f"limit {name}": "nothing that it limits was there to be measured"
            for name in self.policy.limits
            if name not in self.strongest()
        }
        told = {**self.not_run, **unmeasured}
        left = "; ".join(f"{name}: {why}" for name, why in told.items())
        return f"Run: {ran}. Not run: {left or 'nothing'}. {LOWER_BOUND}"

    @property
    def fields(self) -> dict[str, Any]:
        """As `audit.json` holds it."""
        return {
            "schema": SCHEMA,
            "status": self.status,
            "verdict": VERDICTS[self.status],
            "above-policy": self.above,
            "sentence": self.sentence,
            "subject": dict(self.subject),
            "policy": {
                "sha256": self.policy.sha256,
                "file": None if self.policy.path is None else self.policy.path.name,
                "limits": dict(self.policy.limits),
            },
            "documents": self.documents,
            "recordings": self.recordings,
            "strongest": {
                name: {"value": value, "attack": key}
                for name, (value, key) in self.strongest().items()
            },
            "attacks": [one.fields for one in self.attacks],
            "controls": [
                {"name": one.name, "passed": one.passed, "measured": one.measured}
                for one in self.controls
            ],
            "sweep": [
                {
                    "kind": one.kind,
                    "setting": one.setting,
                    "bottom-layers": one.bottom_layers,
                    "top-layers": one.top_layers,
                    "shares": dict(one.shares),
                    "converged": one.converged,
                }
                for one in self.sweep
            ],
            "not-run": self.not_run,
            "budget-used-up": self.used_up,
            "seconds": round(self.seconds, 1),
            "processor-seconds": round(self.processor_seconds, 1),
        }


def _measured(attack: AttackResult) -> Iterator[tuple[str, float]]:
    if (found := attack.recovery) is not None:
        yield "tokens", found.tokens.high
        if found.content_tokens is not None:
            yield "content-tokens", found.content_tokens.high
        yield "rouge-l", found.rouge_l.high
        yield "documents", found.documents.high
        yield "worst-decile", found.worst_decile
        if found.identifiers is not None:
            yield "identifiers", found.identifiers.high
    if (above := attack.above_guess) is not None:
        yield "labels-above-guess", above
    if attack.key in ("U1", "U2") and attack.share is not None:
        yield "update-tokens", attack.share.value
    if attack.key == "M1" and attack.share is not None:
        yield "canaries", attack.share.value


def best_of(attacks: Sequence[AttackResult], key: str) -> AttackResult | None:
    """The attack of those called `key` that has the most tokens."""
    held = [one for one in attacks if one.key == key and one.recovery is not None]
    return max(held, key=lambda one: one.recovery.tokens.value if one.recovery else 0, default=None)
