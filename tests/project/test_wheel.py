"""The built wheel, installed outside the working tree, has every module and all package data."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

IMPORT_ALL = """
import importlib, pkgutil, sys
import flower_split
assert flower_split.__file__.startswith(sys.argv[1]), flower_split.__file__
names = [found.name for found in pkgutil.walk_packages(flower_split.__path__, "flower_split.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""

READ_DATA = """
from importlib.resources import files
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from flower_split.quickstart import BASE_MODEL
package, folder = BASE_MODEL.split(":")
base = files(package) / folder
model = AutoModelForCausalLM.from_pretrained(base)
tokenizer = AutoTokenizer.from_pretrained(base)
assert model.config.num_hidden_layers >= 6
assert len(tokenizer) == model.config.vocab_size
"""


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the working tree: a build writes into the tree that it builds."""
    tree = tmp_path_factory.mktemp("wheel") / "tree"
    tree.mkdir()
    for name in ("flower_split", "strategies"):
        shutil.copytree(
            root / name,
            tree / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tree / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (tree / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(site: Path, program: str) -> str:
    """Run `program` with the wheel's modules before any other installation's."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(site)],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_source_file_is_in_the_wheel(root: Path, site: Path) -> None:
    expected = {
        path.relative_to(root).as_posix()
        for path in (root / "flower_split").rglob("*.py")
        if "strategies" not in path.relative_to(root).parts
    } | {
        f"flower_split/{path.relative_to(root).as_posix()}"
        for path in (root / "strategies").rglob("*.py")
    }
    assert {path.relative_to(site).as_posix() for path in site.rglob("*.py")} == expected


def test_package_data_and_licence_are_in_the_wheel(root: Path, site: Path) -> None:
    assert (site / "flower_split/py.typed").is_file()
    for path in (root / "flower_split/quickstart/base").iterdir():
        assert (site / "flower_split/quickstart/base" / path.name).read_bytes() == path.read_bytes()
    for path in (root / "flower_split/proto").glob("*.pyi"):
        assert (site / "flower_split/proto" / path.name).is_file()
    assert list(site.glob("*.dist-info/licenses/LICENSE"))


def test_every_module_of_the_wheel_can_be_imported(root: Path, site: Path) -> None:
    files = [*(root / "flower_split").rglob("*.py"), *(root / "strategies").rglob("*.py")]
    modules = {path for path in files if root / "flower_split/strategies" not in path.parents}
    without_root = len(modules) - 1
    assert int(run(site, IMPORT_ALL)) == without_root


def test_the_quickstart_model_of_the_wheel_loads(site: Path) -> None:
    run(site, READ_DATA)
