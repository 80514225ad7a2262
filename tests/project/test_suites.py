"""The quick suite covers every package, and tests read outcomes."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PRIVATE = re.compile(r"(?<!\bself)(?<!\bcls)(?<!super\(\))\._[a-z]")
OTHERS = re.compile(r"os[.]_exit|[.]_attn_implementation|[.]_fixtureinfo")
"""Names of Python, transformers and pytest for which there is no public one."""
MOST_LINES = 0
"""With a private attribute of something else. Not to be raised."""


@pytest.mark.slow
def test_the_quick_suite_covers_every_package(root: Path, pyproject: dict[str, Any]) -> None:
    """By a test in its own folder, or by one that imports it."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-m", "not slow and not medium and not exhaustive"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    files = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    texts = {file: (root / file).read_text(encoding="utf-8") for file in files}
    _, *packages = pyproject["tool"]["setuptools"]["packages"]
    missed = [
        package
        for package in packages
        if not any(
            Path(file).parent == Path("tests", *package.split(".")[1:])
            or re.search(rf"^\s*(from|import) {re.escape(package)}\b", text, re.MULTILINE)
            for file, text in texts.items()
        )
    ]
    assert missed == []


def test_private_attributes_are_not_read(root: Path) -> None:
    lines = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sorted((root / "tests").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if PRIVATE.search(OTHERS.sub("", line))
    ]
    assert len(lines) <= MOST_LINES, "\n".join(lines)
