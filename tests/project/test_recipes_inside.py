"""The recipes for this project itself, followed in a copy of the tree: their edits, no other."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from started_processes import python_path

pytestmark = pytest.mark.slow

COPIED = (
    "CONTRIBUTING.md",
    "docs",
    "examples/bench-strategies",
    "flower_split",
    "pyproject.toml",
    "strategies",
    "tests/apps/test_key_reference.py",
    "tests/conftest.py",
    "tests/data",
    "tests/project/conftest.py",
    "tests/project/test_exported_members.py",
    "tests/project/test_recipe_strategy.py",
    "tests/segments/test_exactness.py",
    "tests/strategies/lora",
    "tests/support",
)

STRATEGY = '''"""`EvenLoRA`: plain means of A and of B, whatever the silos' weights are."""

import torch

from flower_split.lowrank import Factors
from flower_split.strategies.lora.base import LoraStrategy
from flower_split.strategies.lora.global_adapter import ModuleResult, ModuleRound


class EvenLoRA(LoraStrategy):
    """Every silo counts the same."""

    name = "evenlora"

    def __init__(self, *, shrink: float = 1.0, **lora: object) -> None:
        super().__init__(**lora)
        self.shrink = shrink

    def aggregate_module(self, module: ModuleRound) -> ModuleResult:
        """The means."""
        a = torch.stack([update.a for update in module.updates]).mean(dim=0)
        b = torch.stack([update.b for update in module.updates]).mean(dim=0)
        trained = Factors(a=a, b=self.shrink * b, scale=module.before.scale)
        return ModuleResult(trained=trained)
'''
TEST_OF_STRATEGY = """
import torch
from lora_silos import Federation, Silo, toy_adapter

from flower_split.config.model import LoraSettings
from flower_split.strategies import EvenLoRA


def test_every_silo_counts_the_same():
    federation = Federation([Silo(examples=1), Silo(examples=9)])
    strategy = EvenLoRA(lora=LoraSettings(r=4, alpha=8.0), fraction_evaluate=0.0)
    state = federation.run(strategy, toy_adapter(4))
    for name, tensor in state.items():
        own = torch.stack([held[name].double() for held in federation.own(1)])
        torch.testing.assert_close(tensor, own.mean(dim=0))
"""
READER = '''
def whole(content: bytes, path: Path) -> Numbered:
    """The file as one example."""
    yield 1, {"text": content.decode()}


READERS:'''
TEST_OF_READER = """

def test_a_note_is_one_example(tmp_path: Path) -> None:
    examples = read_file(file(tmp_path, "one\\n\\ntwo", "silo.note"))
    assert [row for row in examples] == [{"text": "one\\n\\ntwo"}]
"""

EDITS: dict[str, dict[str, tuple[str, str]]] = {
    "An aggregation strategy": {
        "strategies/lora/even.py": ("", STRATEGY),
        "tests/strategies/lora/test_even.py": ("", TEST_OF_STRATEGY),
        "docs/strategies.md": ("| `hetlora` |", "| `evenlora` | | no | | | | |\n| `hetlora` |"),
        "examples/bench-strategies/comparison/entries.py": (
            '    _equal("hetlora"),\n',
            '    _equal("hetlora"),\n    _equal("evenlora"),\n',
        ),
        "docs/run-config.md": ("", ""),  # written by the command that the recipe names
    },
    "A model family": {
        "flower_split/segments/families.py": (
            '("mixtral", "qwen3_moe")',
            '("mixtral", "olmo", "qwen3_moe")',
        ),
        "tests/support/tiny_models.py": (
            '    _like_llama("mistral",',
            '    _like_llama("olmo", clip_qkv=0.5),\n    _like_llama("mistral",',
        ),
        "docs/models.md": ("", ""),  # written by the command that the recipe names
    },
    "A way to read data": {
        "flower_split/data/files.py": ("\nREADERS:", READER),
        "tests/data/test_files.py": ("", TEST_OF_READER),
    },
}
FURTHER: dict[str, list[tuple[str, str]]] = {
    "strategies/__init__.py": [
        (
            "from flower_split.strategies.lora.fedavg import",
            "from flower_split.strategies.lora.even import EvenLoRA\n"
            "from flower_split.strategies.lora.fedavg import",
        ),
        ('    "bulyan": Bulyan,\n', '    "bulyan": Bulyan,\n    "evenlora": EvenLoRA,\n'),
        ('    "FFALoRA",\n', '    "EvenLoRA",\n    "FFALoRA",\n'),
    ],
    "flower_split/data/files.py": [('"txt": paragraphs', '"txt": paragraphs, "note": whole')],
}
"""Edits of a file that has several."""


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy, after all recipes."""
    tree = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (root / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / name, tree / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(root / name, tree / name)
    edits = [(path, *edit) for recipe in EDITS.values() for path, edit in recipe.items()]
    edits += [(path, *edit) for path, several in FURTHER.items() for edit in several]
    for path, before, after in edits:
        file = tree / path
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        assert before in text, f"{path} has no {before!r} any more"
        changed = text.replace(before, after, 1) if before else text + after
        file.write_text(changed, encoding="utf-8")
    page = run(tree, "-m", "flower_split.apps.key_reference")
    (tree / "docs/run-config.md").write_text(page, encoding="utf-8")
    return tree


def run(tree: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": python_path(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_nothing_else_has_to_be_edited(tree: Path) -> None:
    said = run(
        tree,
        *("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k"),
        "(not another_package and not exact) or olmo or covers",
        *(path for path in COPIED if Path(path).name.startswith("test_")),
        "tests/data/test_files.py",
        "tests/strategies/lora/test_even.py",
    )
    assert "passed" in said and "failed" not in said


@pytest.mark.parametrize("recipe", EDITS)
def test_the_recipe_names_every_file_that_is_edited(root: Path, recipe: str) -> None:
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"^- \*\*{recipe}\*\*.*?(?=^- \*\*)", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    named = set(re.findall(r"`([\w./-]+(?:\.py|\.md|/))`", found[0].partition("this project:")[2]))
    edited = {*EDITS[recipe]} | ({"strategies/__init__.py"} if "strategy" in recipe else set())
    for path in edited:
        assert path in named or f"{Path(path).parent.as_posix()}/" in named, path
    for path in named:
        assert path in edited or any(one.startswith(path) for one in edited), path
