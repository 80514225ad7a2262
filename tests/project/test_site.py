"""The site's own pages: what they list is all there is, and what they quote is said."""

import ast
import os
import re
from pathlib import Path

import pytest

import flower_split
from flower_split import strategies

ROOT = Path(__file__).parents[2]


def sentences() -> list[str]:
    """Every text of the code, with … for what is filled in."""
    found = []
    for folder in ("flower_split", "strategies"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.JoinedStr(values=values):
                        parts = [v.value if isinstance(v, ast.Constant) else "…" for v in values]
                        found.append("".join(map(str, parts)))
                    case ast.Constant(value=str(text)):
                        found.append(text)
    return found


def test_the_index_leads_to_every_page() -> None:
    text = (ROOT / "docs/site/index.md").read_text(encoding="utf-8")
    for page in {*(ROOT / "docs").glob("*.md"), ROOT / "docs/site/api.md"}:
        link = os.path.relpath(page.with_suffix(""), ROOT / "docs/site")
        assert page.name == "README.md" or f"\n{link}\n" in text


def test_the_api_names_everything_that_is_exported() -> None:
    text = (ROOT / "docs/site/api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\w+", text))
    constants = {"INNER_STRATEGIES"}
    assert {*flower_split.__all__, *strategies.__all__} - constants <= listed


@pytest.mark.medium
def test_sentences_of_the_troubleshooting_page_are_said() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.+)`$", text, flags=re.MULTILINE)
    said = sentences()
    assert len(quoted) > 15
    for sentence in quoted:
        if sentence != "Invalid run configuration":  # Flower's
            expected = re.escape(sentence).replace("…", ".*")
            assert any(re.search(expected, text) for text in said), sentence
