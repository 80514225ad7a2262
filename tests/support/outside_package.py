"""A package outside flower_split, installed as far as Python's import system can tell."""

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


@contextmanager
def installed(
    folder: Path, package: str, group: str, entries: Mapping[str, str], source: str
) -> Iterator[ModuleType]:
    """The module `package` of one file, importable for a while, with entry points of one group.

    Args:
        folder: An empty one; it becomes the first one of `sys.path`.
        package: Name of the distribution and of its module.
        group: The entry-point group.
        entries: What of the module is registered, by name.
        source: The module's text.
    """
    (folder / f"{package}.py").write_text(source, encoding="utf-8")
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {package}:{attribute}\n" for name, attribute in entries.items()]
    (info / "entry_points.txt").write_text(f"[{group}]\n{''.join(lines)}")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module(package)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(package, None)


def recipe(title: str) -> str:
    """The bullet of CONTRIBUTING's recipes that begins with `title`, in one line."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"^- \*\*{re.escape(title)}\*\*:(.*?)(?=^- |^$)", text, re.M | re.S)
    if found is None:
        raise LookupError(f"CONTRIBUTING.md has no recipe {title!r}")
    return " ".join(found[1].split())


def told(recipe_text: str) -> tuple[str, str]:
    """The base class that a recipe names, as `module:Class`, and the entry-point group."""
    base = re.search(r"`(flower_split[\w.]*:\w+)`", recipe_text)
    group = re.search(r'`\[project\.entry-points\."([\w.]+)"\]`', recipe_text)
    if base is None or group is None:
        raise LookupError("the recipe names no base class or no entry-point group")
    return base[1], group[1]


def install(folder: Path, name: str, plugins: dict[str, dict[str, str]], code: str = "") -> Path:
    """A module with its metadata in `folder`, which is to be put on the path.

    Args:
        folder: Where packages lie.
        name: Of module and package.
        plugins: By entry-point group: the entries' names and where they lead.
        code: The module's text.
    """
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = (
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in plugins.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    if code:
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return folder
