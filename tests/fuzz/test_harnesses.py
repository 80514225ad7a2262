"""Each fuzzing harness, on its seeds and on bytes at random: they are tested as they are driven."""

import importlib
import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import fuzz_harnesses
import pytest
from fuzz_choices import Choices
from fuzz_harnesses import NAMES, harness, seeds

INPUTS = 150
"""For every harness; the slow ones get a part of it."""
SLOW = ("engine", "control")


def inputs(name):
    """The seeds, then seeds with damage and bytes at random."""
    chance, good = random.Random(name), seeds(name)
    yield from good
    for number in range(INPUTS if name not in SLOW else INPUTS // 3):
        noise = chance.randbytes(chance.randrange(1, 60))
        yield noise if number % 2 else chance.choice(good)[: chance.randrange(1, 80)] + noise


@pytest.mark.sampled(keep=6)
@pytest.mark.parametrize("name", NAMES)
def test_a_harness_finds_nothing(name):
    for data in inputs(name):
        try:
            harness(name)(data)
        except Exception as error:
            raise AssertionError(f"{name} of bytes.fromhex({data.hex()!r})") from error


@pytest.mark.parametrize("part", fuzz_harnesses.PARTS)
def test_every_harness_of_a_part_has_a_name_and_seeds(part):
    module = importlib.import_module(part)
    assert set(module.HARNESSES) == set(module.SEEDS) == set(fuzz_harnesses.PARTS[part])


def test_choices_are_read_off_the_bytes_and_zero_after_them():
    choices = Choices(bytes([7, 1, 44, 3, 9, 8, 7, 6]))
    assert choices.below(5) == 2
    assert choices.below(1000) == 0x012C
    assert choices.bytes(4) == bytes([9, 8, 7])
    assert choices.rest() == bytes([6])
    assert not choices.more
    assert (choices.byte(), choices.below(9), choices.of("ab"), choices.bytes(3)) == (
        0,
        0,
        "a",
        b"",
    )


@pytest.mark.exhaustive
def test_an_input_is_run_again_by_its_file(tmp_path, root_of_tests):
    (tmp_path / "codecs").mkdir()
    path = tmp_path / "codecs" / "crash-1"
    path.write_bytes(seeds("codecs")[0])
    done = subprocess.run(
        [sys.executable, str(root_of_tests / "fuzz/fuzz.py"), "--input", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "codecs: nothing is raised\n"), done.stderr


@pytest.fixture
def root_of_tests():
    return Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_fuzzer_runs_every_harness(tmp_path, root_of_tests):
    done = subprocess.run(
        [
            sys.executable,
            str(root_of_tests / "fuzz/fuzz.py"),
            "--seconds",
            "48",
            "--out",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES:
        row = next(line.split() for line in done.stdout.splitlines() if line.startswith(name))
        assert int(row[1].replace(",", "")) > 100, done.stdout
