"""The span check of the run's own steps holds under noise at the cuts, too."""

from pathlib import Path

import pytest
from audit_subject import opened

from flower_split.audit import AuditSettings, Budget, Policy
from flower_split.audit.on_updates import check_span
from flower_split.audit.outcome import Outcome
from flower_split.audit.under_way import UnderWay

RANK = 2


@pytest.mark.medium
@pytest.mark.parametrize("noisy", ["", "g2", "g1"])
def test_tokens_are_found_up_to_the_rank_and_none_beyond(tmp_path: Path, noisy: str) -> None:
    changed = {f"wire.{noisy}-clip": 0.1, f"wire.{noisy}-noise": 1.0} if noisy else {}
    lora = {"lora.r": RANK, "lora.target-modules": "v_proj"}
    subject, texts = opened(tmp_path, "flower_split.quickstart:base", **lora, **changed)
    outcome = Outcome(subject={}, policy=Policy(), documents=len(texts.victims))
    outcome.recordings["own"] = ""
    check_span(
        UnderWay(
            subject=subject,
            texts=texts,
            settings=AuditSettings(),
            budget=Budget(1),
            say=lambda text: None,
            outcome=outcome,
        )
    )
    (attack,) = outcome.attacks
    checks = {one["tokens"]: one for one in attack.detail["gradient"]}
    assert checks[RANK]["rank"] == RANK and checks[RANK]["found"] == 1.0
    assert not checks[RANK + 1]["applicable"] and checks[RANK + 1]["found"] < 0.5
    (control,) = outcome.controls
    assert control.passed
