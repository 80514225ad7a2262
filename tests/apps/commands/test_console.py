"""What a command prints of a run: what its check has said is not said again."""

import pytest

from flower_split.apps.checking.findings import Findings
from flower_split.apps.commands.console import shown_once


def test_what_the_check_has_said_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    findings = Findings()
    findings.warn("settings", "24 steps in all")
    findings.ok("strategy", "fedavg")
    show = shown_once(findings)
    for level, text in (("WARNING", "24 steps in all"), ("INFO", "fedavg"), ("WARNING", "new")):
        show(level, text)
    assert capsys.readouterr().out.splitlines() == ["fedavg", "warning: new"]
