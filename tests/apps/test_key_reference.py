from pathlib import Path

from flower_split.apps.key_reference import render
from flower_split.config.run_config import run_keys

PAGE = Path(__file__).parents[2] / "docs" / "run-config.md"


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "run: python -m flower_split.apps.key_reference > docs/run-config.md"
    )


def test_every_key_is_explained():
    rows = [line.split(" | ") for line in render().splitlines() if line.startswith("| `")]
    explained = {row[0].removeprefix("| ").strip("`") for row in rows if len(row[3]) > 10}
    assert [key.key for key in run_keys().values() if key.key not in explained] == []
