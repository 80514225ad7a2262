"""An audit from its beginning on: what ends it before its verdict."""

from pathlib import Path

import pytest
from audit_subject import opened

from flower_split.audit import AuditSettings, Budget, read_policy, run_audit
from flower_split.errors import ConfigError


@pytest.mark.medium
def test_a_policy_that_is_changed_ends_the_audit_where_it_is(tmp_path: Path) -> None:
    subject, texts = opened(tmp_path)
    path, told = tmp_path / "policy.toml", list[str]()
    path.write_text("[limits]\ntokens = 0.2\n")
    policy = read_policy(path)

    def change(text: str) -> None:
        told.append(text)
        path.write_text("[limits]\ntokens = 0.9\n")

    with pytest.raises(ConfigError, match="changed after the audit had started"):
        run_audit(subject, texts, policy, settings=AuditSettings(), budget=Budget(1), say=change)
    assert told == ["positive control: no layers"]
