from pathlib import Path

from flower_split.adapters.methods import method_names
from flower_split.apps.method_reference import render

PAGE = Path(__file__).parents[2] / "docs" / "peft-methods.md"


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "run: python -m flower_split.apps.method_reference > docs/peft-methods.md"
    )


def test_every_method_has_a_row():
    table, _, _ = render().partition("| `model.quantization`")
    rows = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert rows == ["peft.type", *method_names()]
