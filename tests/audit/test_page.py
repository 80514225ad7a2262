"""The page says who can make each attack, and what a verdict means."""

from typing import Any

import pytest

from flower_split.audit.metrics import Share
from flower_split.audit.outcome import AttackResult, Control, Outcome
from flower_split.audit.page import MEANINGS, audit_page
from flower_split.audit.policy import Policy


def outcome(*, passed: bool = True, party: str = "A", found: float = 0.0) -> Outcome:
    made = Outcome(subject={}, policy=Policy(limits={"update-tokens": 0.1}), documents=9)
    share = Share(value=found, low=found, high=found)
    held: dict[str, Any] = {"knows": "", "recording": "", "seconds": 0.0, "share": share}
    detail = {"gradient": [], "update-of-adamw": []}
    made.attacks.append(AttackResult(key="U1", name="span", party=party, detail=detail, **held))
    made.controls.append(Control(name="any", passed=passed, measured=""))
    made.is_complete = True
    return made


@pytest.mark.parametrize(
    ("made", "status"),
    [(outcome(), 0), (outcome(found=0.5), 3), (outcome(passed=False, found=0.5), 4)],
)
def test_a_verdict_is_said_in_a_sentence(made: Outcome, status: int) -> None:
    page = audit_page(made)
    assert made.status == status and MEANINGS[status] in page
    assert not any(text in page for other, text in MEANINGS.items() if other != status)


def test_parties_are_named_where_they_can_do_something() -> None:
    page = audit_page(outcome(party="A+T"))
    assert "who is both" in page and "whoever has the final adapter" not in page
