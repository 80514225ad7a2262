"""The policy: limits in a file that is fixed, and a verdict by the strongest attack."""

from pathlib import Path
from typing import Any

import pytest

from flower_split.audit.metrics import Share
from flower_split.audit.outcome import AttackResult, Control, Outcome
from flower_split.audit.policy import DEFAULT, Policy, read_policy
from flower_split.errors import ConfigError


def test_a_policy_is_read_and_may_not_change(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[limits]\ntokens = 0.2\nlabels-above-guess = 1\n")
    policy = read_policy(path)
    assert policy.limits == {"tokens": 0.2, "labels-above-guess": 1.0}
    policy.check_unchanged()
    path.write_text("[limits]\ntokens = 0.9\n")
    with pytest.raises(ConfigError, match="changed after the audit had started"):
        policy.check_unchanged()
    assert read_policy(None).limits == DEFAULT


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[limits]\ntoken = 0.2\n", "unknown limit 'token'; did you mean 'tokens'"),
        ("[limits]\ntokens = 2\n", "tokens must be a number at least 0"),
        ("[limits]\ntokens = true\n", "tokens must be a number"),
        ("[limits]\ntokens = 0.1\n[other]\n", "unknown table or key 'other'"),
        ("limits = 3\n", "has no .limits. with"),
        ("[limits\n", "is no TOML"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_policy_is_one_sentence(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "policy.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_policy(path)
    assert len(caught.value.problems) == 1


def outcome(
    value: float, *, passed: bool = True, used_up: bool = False, complete: bool = True
) -> Outcome:
    held: dict[str, Any] = {"party": "T", "knows": "", "recording": "", "seconds": 0.0}
    guess = Share(value=0.2, low=0.2, high=0.2)
    made = Outcome(subject={}, policy=Policy(limits={"labels-above-guess": 0.1}), documents=9)
    for key, labels in (("B2", 0.25), ("B3", value)):
        share = Share(value=labels, low=labels, high=labels)
        made.attacks.append(AttackResult(key=key, name=key, labels=share, guess=guess, **held))
    made.controls.append(Control(name="any", passed=passed, measured=""))
    made.used_up, made.is_complete = used_up, complete
    return made


def test_statuses() -> None:
    """A failed instrument hides a leak, and a leak that was found one that was not looked for."""
    assert outcome(0.28).status == 0
    assert outcome(0.5).status == 3 and outcome(0.5).above == ["labels-above-guess"]
    assert outcome(0.5).strongest()["labels-above-guess"] == (pytest.approx(0.3), "B3")
    assert outcome(0.5, passed=False).status == outcome(0.28, passed=False).status == 4
    assert outcome(0.28, used_up=True).status == 5
    assert outcome(0.5, used_up=True).status == 3
    assert outcome(0.5, complete=False).status == 5
    assert "lower bound" in outcome(0.28).sentence
    made = outcome(0.28)
    assert "limit" not in made.sentence
    made.policy = Policy(limits={"identifiers": 0.0})
    assert made.status == 0 and "limit identifiers: nothing" in made.sentence
