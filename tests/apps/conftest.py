"""A tiny model and text of three silos in a folder, and the run config that uses them."""

import pytest
from tiny_checkpoint import save_tiny_run, tiny_run_config


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder with `model` and `texts.jsonl`."""
    return save_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run_config(tiny):
    return tiny_run_config(tiny)
