"""The silos of the quickstart: real, different, deterministic, and read without imports."""

import subprocess
import sys

import pytest

from flower_split.errors import DataError
from flower_split.quickstart.corpora import (
    MAX_DOCSTRINGS,
    SILO_PACKAGES,
    package_docstrings,
    silo_docstrings,
)


def texts(partition_id: int, num_partitions: int) -> list[str]:
    return [example["text"] for example in silo_docstrings(partition_id, num_partitions)]


@pytest.mark.exhaustive
def test_every_silo_has_much_text_of_its_own() -> None:
    silos = [texts(silo, 3) for silo in range(3)]
    for text in silos:
        assert 300 <= len(text) == len(set(text)) <= MAX_DOCSTRINGS
    assert not set(silos[0]) & set(silos[1]) and not set(silos[1]) & set(silos[2])
    assert sum("Parameters\n----------" in text for text in silos[0]) > 200
    assert not any("Parameters\n----------" in text for text in silos[1])


@pytest.mark.medium
@pytest.mark.parametrize("num_partitions", [1, 2, 4, 7])
def test_silos_of_one_package_share_it_without_overlap(num_partitions: int) -> None:
    silos = [texts(silo, num_partitions) for silo in range(num_partitions)]
    everything = [text for silo in silos for text in silo]
    packages = list(SILO_PACKAGES)[:num_partitions]
    expected = {text for package in packages for text in package_docstrings(package)}
    assert len(everything) == len(set(everything))
    assert set(everything) == expected


@pytest.mark.parametrize("partition_id", [-1, 3])
def test_a_silo_that_does_not_exist_is_refused(partition_id: int) -> None:
    with pytest.raises(DataError, match=r"below num_partitions 3, not"):
        silo_docstrings(partition_id, 3)


@pytest.mark.medium
def test_more_silos_than_docstrings_are_refused() -> None:
    with pytest.raises(DataError, match="use fewer silos"):
        silo_docstrings(9998, 9999)


def test_the_packages_are_not_imported_and_the_order_is_the_same_in_every_process() -> None:
    program = (
        "import sys\n"
        "from flower_split.quickstart.corpora import silo_docstrings\n"
        "found = [silo_docstrings(silo, 3)[7]['text'] for silo in range(3)]\n"
        "assert not {'numpy', 'torch', 'transformers'} & set(sys.modules)\n"
        "print(repr(found))\n"
    )
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == repr([texts(silo, 3)[7] for silo in range(3)])
