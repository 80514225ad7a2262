"""Docstrings as a text corpus, read from Python sources without importing or running them."""

import ast
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_files(root: Path, *, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The `.py` files below `root` (or `root` itself), sorted by path.

    Folders and files whose name is in `skip` are left out.
    """
    if root.is_file():
        yield root
        return
    for path in sorted(root.rglob("*.py")):
        if skip.isdisjoint(path.relative_to(root).parts):
            yield path


def docstrings_of(path: Path) -> list[str]:
    """The docstrings of one source file, in the order of their lines.

    A file that is not UTF-8, or not valid for the running Python, has none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's opinion of somebody else's source
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return []
    nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def collect(paths: Iterable[Path], *, min_chars: int) -> list[str]:
    """Distinct docstrings of at least `min_chars` characters, in the order of `paths`."""
    found: dict[str, None] = {}
    for path in paths:
        for text in docstrings_of(path):
            if len(text) >= min_chars:
                found.setdefault(text)
    return list(found)
