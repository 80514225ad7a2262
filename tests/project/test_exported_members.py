"""Every package says which names are public, and has them."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import flower_split

PACKAGES = [
    "flower_split",
    *(
        found.name
        for found in pkgutil.walk_packages(flower_split.__path__, "flower_split.")
        if found.ispkg and found.name != "flower_split.proto"
    ),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_exported_names_exist_once(name: str) -> None:
    package = importlib.import_module(name)
    exported = list(getattr(package, "__all__", []))
    assert len(exported) == len(set(exported))
    assert [one for one in exported if not hasattr(package, one)] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_package_has_in_public_is_exported(name: str) -> None:
    package = importlib.import_module(name)
    public = {
        one
        for one, value in vars(package).items()
        if not one.startswith("_")
        and not isinstance(value, ModuleType)
        and str(getattr(value, "__module__", name)).startswith("flower_split")
    }
    assert public - {"TYPE_CHECKING"} <= set(getattr(package, "__all__", []))


def test_the_public_classes_and_functions_are_documented() -> None:
    undocumented = [
        f"{name}.{one}"
        for name in PACKAGES
        for one in getattr(importlib.import_module(name), "__all__", [])
        if callable(value := getattr(importlib.import_module(name), one)) and not value.__doc__
    ]
    assert undocumented == []


def test_the_package_itself_is_light() -> None:
    program = (
        "import flower_split, sys; sys.exit(bool({'torch', 'flwr', 'grpc'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = flower_split.nothing
