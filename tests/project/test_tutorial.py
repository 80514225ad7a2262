"""The tutorial's commands run as pasted, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"


@pytest.mark.slow
def test_the_tutorial_leads_to_an_adapter_in_use(tmp_path: Path) -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    commands = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(commands) > 4
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    outputs = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    assert (tmp_path / "trained/adapter/adapter_config.json").is_file()
    assert (tmp_path / "trained/result.json").is_file()
    assert "returns" in outputs[-1].lower()
