"""A tiny model and text, an app that uses them, and a federation of two silos."""

from types import SimpleNamespace

import pytest
from federation import Federation, Node, write_app
from tiny_checkpoint import save_texts, save_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder with `model`, `texts.jsonl`, and an app in `app` that trains one round with them."""
    folder = tmp_path_factory.mktemp("tiny")
    config = {
        "model.name": str(save_tiny_model(folder / "model")),
        "data.path": str(save_texts(folder / "texts.jsonl")),
        "data.eval-fraction": 0.25,
        "train.batch-size": 3,
        "train.learning-rate": 1e-2,
        "train.max-length": 16,
        "lora.r": 2,
        "num-server-rounds": 1,
        "evaluate-initial": False,
        "strategy.fraction-evaluate": 0.0,
    }
    return SimpleNamespace(
        model=folder / "model", config=config, app=write_app(folder / "app", config)
    )


@pytest.fixture(scope="session")
def over_tls(tmp_path_factory):
    """A federation over TLS of two silos, each with a `cache-dir` of its own."""
    folder = tmp_path_factory.mktemp("over-tls")
    nodes = [
        Node(config={"partition-id": i, "num-partitions": 2, "cache-dir": f"{folder}/cache{i}"})
        for i in range(2)
    ]
    with Federation(folder / "home", nodes, tls=True) as running:
        yield running


@pytest.fixture
def start_federation(tmp_path):
    """Starts federations that end with the test."""
    started = []

    def start(nodes=2, **options):
        given = [Node(config={"partition-id": i, "num-partitions": nodes}) for i in range(nodes)]
        running = Federation(tmp_path / f"federation{len(started)}", given, **options)
        started.append(running)
        return running.__enter__()

    yield start
    for running in started:
        running.close()
