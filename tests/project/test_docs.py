"""What the documents tell a reader to type or to open exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
    if ".venv" not in path.parts
)


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_make_commands_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"^(?:\$ )?make ([a-z-]+)", text, flags=re.MULTILINE))
    named |= set(re.findall(r"`make ([a-z-]+)`", text))
    assert named <= targets()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_named_modules_and_apps_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for module in re.findall(r"python -m (flower_split[\w.]*)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for app in re.findall(r"flwr run (examples/[\w-]+)", text):
        assert (ROOT / app / "pyproject.toml").is_file(), app


def test_the_readme_names_both_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make demo\b", text, flags=re.MULTILINE)
    assert re.search(r"^make test\b", text, flags=re.MULTILINE)


@pytest.mark.parametrize("folder", ["docs", "examples"])
def test_an_index_leads_to_every_page(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    links = {(ROOT / folder / link).resolve() for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    pages = set((ROOT / folder).glob("*.md" if folder == "docs" else "*/"))
    pages = {page for page in pages if page.is_file() or (page / "README.md").is_file()}
    assert pages - {ROOT / folder / "README.md"} <= links
