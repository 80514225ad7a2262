"""A tiny model and text of three silos in a folder, and the run config that uses them."""

import pytest
from tiny_checkpoint import save_texts, save_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder with `model` and `texts.jsonl`."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder / "model")
    save_texts(folder / "texts.jsonl")
    return folder


@pytest.fixture
def run_config(tiny):
    return {
        "model.name": str(tiny / "model"),
        "data.path": str(tiny / "texts.jsonl"),
        "data.eval-fraction": 0.25,
        "train.batch-size": 3,
        "train.learning-rate": 1e-2,
        "train.max-length": 16,
        "lora.r": 2,
        "num-server-rounds": 2,
        "round-timeout": 60.0,
        "strategy.min-nodes": 3,
    }
