"""A federation of toy silos in one process."""

from types import SimpleNamespace

import pytest
import torch
from flwr.clientapp import ClientApp
from in_process_grid import InProcessGrid
from toy_trunk import ToyHost, honest_reply, toy_config

from flower_split.strategies import SplitStrategy


@pytest.fixture
def toy():
    """Runs a toy federation; `reply` makes a silo's reply and may be replaced."""

    def run(inner, *, reply=honest_reply, host=None, config=None, nodes=3, grid=None, **start):
        host = host or ToyHost()
        app = ClientApp()
        seen = []

        def answer(message, context):
            seen.append(message)
            return reply(message, context, host)

        app.train()(answer)
        app.evaluate()(answer)
        in_process = InProcessGrid(app, nodes, **(grid or {}))
        strategy = SplitStrategy(config or toy_config(), inner, host=host)
        outcome = SimpleNamespace(
            host=host, seen=seen, grid=in_process, strategy=strategy, result=None
        )
        run.last = outcome
        outcome.result = strategy.start(in_process, **start)
        return outcome

    return run


@pytest.fixture
def values():
    """The first element of every tensor of an ArrayRecord or a state."""

    def first(arrays):
        return {
            name: float(
                entry.flatten()[0] if isinstance(entry, torch.Tensor) else entry.numpy().ravel()[0]
            )
            for name, entry in arrays.items()
        }

    return first
