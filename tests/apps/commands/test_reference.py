"""The page of all commands is what the commands are."""

from pathlib import Path

from flower_split.apps.commands.reference import render

PAGE = Path(__file__).parents[3] / "docs" / "commands.md"


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "run: python -m flower_split.apps.commands.reference > docs/commands.md"
    )


def test_every_parameter_is_explained():
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert len(rows) > 60 and [row for row in rows if row.endswith("|  |")] == []
