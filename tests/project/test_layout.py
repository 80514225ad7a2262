"""The tree keeps its shape: listed packages, short documented files, tested versions."""

import ast
import re
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from pathlib import Path
from typing import Any

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
GENERATED = re.compile(r"_pb2(_grpc)?\.py$")
MOST_FILES = 22
"""Python files that a folder may hold; one that needs more has sub-packages."""
SOURCES = sorted(
    path
    for folder in ("flower_split", "strategies")
    for path in (ROOT / folder).rglob("*.py")
    if not GENERATED.search(path.name) and ROOT / "flower_split/strategies" not in path.parents
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_strategies_are_linked_into_the_package(root: Path) -> None:
    link = root / "flower_split/strategies"
    assert link.is_symlink() and link.readlink() == Path("../strategies")


def test_every_package_is_listed_for_installation(root: Path, pyproject: dict[str, Any]) -> None:
    listed = pyproject["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(root).as_posix() for path in SOURCES}
    folders.add("flower_split/proto")
    found = {
        (folder if folder.startswith("flower_split") else f"flower_split/{folder}").replace(
            "/", "."
        )
        for folder in folders
    }
    assert listed == sorted(found)


def test_every_package_has_an_init(root: Path) -> None:
    folders = {path.parent for path in SOURCES}
    assert [name(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_folder_holds_more_files_than_a_reader_takes_in() -> None:
    files = Counter(name(path.parent) for path in SOURCES)
    assert {folder: count for folder, count in files.items() if count > MOST_FILES} == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports in functions, and those for type checkers only, count like any other."""
    graph = grimp.build_graph("flower_split", exclude_type_checking_imports=False, cache_dir=None)
    imports = {one: graph.find_modules_directly_imported_by(one) for one in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


FORBIDDEN = {"torch.load", "torch.save", "pickle.load", "pickle.loads", "eval", "exec"}


def test_a_file_is_short_names_its_concept_leaves_nothing_to_do_and_unpickles_nothing() -> None:
    found = list[str]()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        docstring = ast.get_docstring(tree)
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for problem, is_so in (
            ("more than 400 lines", len(text.splitlines()) > 400),
            ("no docstring", docstring is None or not docstring.splitlines()[0].strip()),
            ("something to do", re.search(r"\b(TODO|FIXME|XXX)\b", text)),
            (f"a call of {', '.join(FORBIDDEN & calls)}", FORBIDDEN & calls),
        ):
            if is_so:
                found.append(f"{name(path)}: {problem}")
    assert found == []


def test_tests_have_no_packages(root: Path) -> None:
    assert list((root / "tests").rglob("__init__.py")) == []


def test_the_tested_versions_lie_in_the_declared_ranges(
    root: Path, pyproject: dict[str, Any]
) -> None:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line.strip() and not line.startswith("#"))
    pinned = {canonicalize_name(key): version for key, version in pinned.items()}
    project = pyproject["project"]
    extras = [entry for group in project["optional-dependencies"].values() for entry in group]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        tested = pinned.get(canonicalize_name(requirement.name))
        if tested is None:
            assert requirement.name == "setuptools", f"{requirement.name} has no tested version"
        else:
            assert requirement.specifier.contains(tested), f"{requirement} excludes {tested}"


def test_no_tested_version_is_of_one_machine_only(root: Path) -> None:
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"\+|@|file:|://|^-", text, flags=re.MULTILINE)


def test_the_version_is_said_once_and_the_same(pyproject: dict[str, Any]) -> None:
    import flower_split

    assert flower_split.__version__ == pyproject["project"]["version"]
    assert metadata.version("flower-split") == flower_split.__version__
