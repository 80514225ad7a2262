from pathlib import Path

import pytest

from flower_split.apps.key_reference import render
from flower_split.config.run_config import run_keys

PAGE = Path(__file__).parents[2] / "docs" / "run-config.md"


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "run: python -m flower_split.apps.key_reference > docs/run-config.md"
    )


@pytest.mark.parametrize("key", list(run_keys().values()), ids=lambda key: key.key)
def test_every_key_is_explained(key):
    row = next(line for line in render().splitlines() if line.startswith(f"| `{key.key}` |"))
    assert len(row.split(" | ")[3]) > 10
