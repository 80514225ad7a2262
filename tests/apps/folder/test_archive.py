"""What of an app's folder leaves the machine: what Flower's own archive holds, and no data."""

import io
import shutil
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from flower_split.apps.folder.archive import (
    LARGEST,
    archive_problems,
    archived,
    check_archive,
    check_installed,
    installed,
    read_project,
)
from flower_split.errors import ConfigError

ROOT = Path(__file__).parents[3]
EXAMPLES = (
    "bench-throughput/half_steps",
    "custom_loop",
    "deployment/app",
    "quickstart",
    "real_model",
    "unsplit_lora",
)
"""Every app of the repository."""
PROJECT = """
[project]
name = "counting"
version = "0.0.1"
description = "Counts"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "tests"
{include}
[tool.flwr.app.components]
serverapp = "counting.app:server"
clientapp = "counting.app:client"
"""
PLANTED = {
    "data/notes.jsonl": "examples",
    "patients.json": "examples",
    "notes.md": "no code",
    "settings.yaml": "no code",
    "counting/labels.toml": "no code",
}
"""Files that Flower takes along by itself."""


def make_app(folder: Path, include: str = "") -> Path:
    (folder / "counting").mkdir(parents=True)
    (folder / "counting/__init__.py").write_text("")
    (folder / "counting/app.py").write_text("server = client = None\n")
    (folder / "README.md").write_text("# counting\n")
    (folder / "pyproject.toml").write_text(PROJECT.format(include=include))
    return folder


def plant(folder: Path) -> None:
    for path in (*PLANTED, "data/rows.csv", "model.safetensors", "silo.key", ".env"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("a patient\n")


def in_flowers_archive(folder: Path) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))) as bundle:
        return {name for name in bundle.namelist() if not name.startswith(".info/")}


@pytest.mark.parametrize("include", ["", 'fab-include = ["/pyproject.toml", "/counting/**/*.py"]'])
def test_it_is_what_flower_builds(tmp_path: Path, include: str) -> None:
    app = make_app(tmp_path / "app", include)
    plant(app)
    assert set(archived(app)) == in_flowers_archive(app)


def test_an_app_of_code_may_leave(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app")
    assert set(check_archive(app)) == {
        "pyproject.toml",
        "README.md",
        "counting/__init__.py",
        "counting/app.py",
    }


def test_whatever_else_flower_takes_along_is_named_with_size_and_kind(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app")
    plant(app)
    with pytest.raises(ConfigError) as caught:
        check_archive(app)
    for path, kind in PLANTED.items():
        assert f"{path} (10 B, {kind})" in str(caught.value)


def test_following_the_advice_leaves_only_code(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app")
    plant(app)
    (problem,) = archive_problems(archived(app), read_project(app))
    _, is_there, advice = problem.partition("fab-include = ")
    assert is_there
    (app / "pyproject.toml").write_text(PROJECT.format(include=f"fab-include = {advice}"))
    assert not {*check_archive(app)} & {*PLANTED}
    assert "counting/app.py" in in_flowers_archive(app)


def test_a_file_that_the_app_names_goes_along_unless_it_is_data(tmp_path: Path) -> None:
    named = 'fab-include = ["/**/*.py", "/settings.yaml", "/data/notes.jsonl"]'
    app = make_app(tmp_path / "app", named)
    plant(app)
    (problem,) = archive_problems(archived(app), read_project(app))
    assert "data/notes.jsonl" in problem.partition("fab-include")[0]
    assert "settings.yaml" not in problem.partition("An app is")[0]


def test_code_that_is_data_is_refused(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app")
    (app / "counting/rows.py").write_text("#" * (LARGEST + 1))
    with pytest.raises(ConfigError, match=r"counting/rows.py \(1.0 MB, too large to be code\)"):
        check_archive(app)


def test_an_unpacked_app_is_judged_alike_without_compiled_code(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app")
    (app / "counting/__pycache__").mkdir()
    (app / "counting/__pycache__/app.cpython-311.pyc").write_text("")
    check_installed(app)
    assert "counting/app.py" in installed(app)
    plant(app)
    with pytest.raises(ConfigError, match=r"data/rows.csv.*model.safetensors \(10 B, weights\)"):
        check_installed(app)
    with pytest.raises(ConfigError, match=r"silo.key \(10 B, a key or certificate\)"):
        check_installed(app)


def test_what_flower_writes_beside_an_unpacked_app_is_none_of_it(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app")
    (app / "uv.lock").write_text("version = 1\n")
    check_installed(app)
    (app / "counting/uv.lock").write_text("version = 1\n")
    with pytest.raises(ConfigError, match=r"counting/uv.lock \(12 B, no code\)"):
        check_installed(app)


@pytest.mark.parametrize("text", ["", "this is no TOML"])
def test_a_folder_without_an_app_is_an_error_of_its_own(tmp_path: Path, text: str) -> None:
    if text:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"holds no app|cannot be read"):
        archived(tmp_path)


def test_a_pattern_that_flower_refuses_is_flowers_word(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app", 'fab-include = ["/nothing/*.py"]')
    with pytest.raises(ConfigError, match=r"Flower makes no archive.*did not match any files"):
        archived(app)


@pytest.mark.parametrize("example", EXAMPLES)
def test_data_that_a_user_puts_into_an_example_stays(tmp_path: Path, example: str) -> None:
    app = tmp_path / "app"
    shutil.copytree(ROOT / "examples" / example, app)
    plain = in_flowers_archive(app)
    (app / "counting").mkdir()
    plant(app)
    assert in_flowers_archive(app) == plain == {*check_archive(app)}


def test_no_example_is_left_out() -> None:
    apps = [
        path.parent.relative_to(ROOT / "examples").as_posix()
        for path in (ROOT / "examples").rglob("pyproject.toml")
        if "[tool.flwr.app]" in path.read_text()
    ]
    assert tuple(sorted(apps)) == EXAMPLES
