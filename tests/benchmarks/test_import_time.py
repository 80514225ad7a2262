"""A client process pays for its imports in every round: they stay few."""

import subprocess
import sys

import pytest
from benchmark_scripts import load_benchmark

measure = load_benchmark("import_time").measure

HEAVY = {"datasets", "pandas", "matplotlib", "ray"}
"""Packages of which a client that trains needs none; `datasets` only where its data is one."""


@pytest.mark.exhaustive
def test_flower_split_adds_little_to_torch_transformers_and_peft():
    """0.3 s, or a tenth of the time of the three where the machine is slow or busy."""
    found = measure(3)
    assert found.ours < max(0.3, found.theirs / 10)
    assert not HEAVY & found.modules


def test_finding_the_app_imports_no_torch():
    """`flwr run` imports the module only to look for `app`."""
    script = "import sys, flower_split.apps.client_app, flower_split.apps.server_app\n"
    script += "print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert not {"torch", "transformers", "peft"} & set(done.stdout.split())
