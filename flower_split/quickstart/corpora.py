"""The quickstart's silos: the docstrings of installed packages, a different package for each.

Used as the run-config value `data.path = "flower_split.quickstart.corpora:silo_docstrings"`.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from flower_split.errors import DataError
from flower_split.quickstart.docstrings import collect, python_files

SILO_PACKAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "numpy": ("_core", "core", "lib", "linalg", "ma", "polynomial", "fft"),
        "torch": ("nn", "optim", "distributions", "autograd", "utils/data"),
        "transformers": ("generation", "pipelines", "trainer.py", "modeling_utils.py", "utils"),
    }
)
"""The silos' packages, each with the well documented parts of it that are read."""

MIN_CHARS = 60
MAX_DOCSTRINGS = 600

_NOT_DOCUMENTATION = frozenset({"test", "tests", "testing", "__pycache__"})


def silo_docstrings(partition_id: int, num_partitions: int) -> list[dict[str, str]]:
    """One silo's examples, `{"text": docstring}`, the same at every call and in mixed order.

    Silo 0 has numpy's docstrings, silo 1 torch's, silo 2 transformers'. Where there are more
    silos than packages, those of one package share its docstrings, none held twice.

    Raises:
        DataError: `partition_id` is not one of `num_partitions`, or a package was installed
            without its sources.
    """
    if not 0 <= partition_id < num_partitions:
        raise DataError(
            f"partition_id must be at least 0 and below num_partitions {num_partitions}, "
            f"not {partition_id}"
        )
    packages = tuple(SILO_PACKAGES)
    mine = partition_id % len(packages)
    sharing = len(range(mine, num_partitions, len(packages)))
    texts = package_docstrings(packages[mine])[partition_id // len(packages) :: sharing]
    if not texts:
        raise DataError(
            f"silo {partition_id} of {num_partitions} has no docstrings of {packages[mine]}: "
            "use fewer silos, or install the package with its .py sources"
        )
    return [{"text": text} for text in texts]


@cache
def package_docstrings(package: str) -> tuple[str, ...]:
    """At most `MAX_DOCSTRINGS` docstrings of one of `SILO_PACKAGES`, which is not imported.

    They are ordered by their hash, so that any prefix of them is a mixture of the whole.

    Raises:
        DataError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the docstrings of {package!r} are needed and it is not installed")
    root = Path(spec.submodule_search_locations[0])
    texts = [
        text
        for part in SILO_PACKAGES[package]
        for text in collect(python_files(root / part, skip=_NOT_DOCUMENTATION), min_chars=MIN_CHARS)
    ]
    distinct = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
    return tuple(distinct[:MAX_DOCSTRINGS])
