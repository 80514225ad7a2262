"""The example with an own training loop, run as it is."""

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.config import flatten_dict
from in_process_grid import RUN_ID, InProcessGrid
from safetensors.torch import load_file

from flower_split import SplitSession
from flower_split.apps.server_app import app as server_app
from flower_split.reporting import read_result

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_loop"
SOURCE = EXAMPLE / "custom_loop" / "client_app.py"


@pytest.fixture(scope="module")
def client_app():
    spec = importlib.util.spec_from_file_location("custom_loop_client_app", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


def test_the_loop_has_less_than_fifteen_lines():
    functions = [n for n in ast.parse(SOURCE.read_text()).body if isinstance(n, ast.FunctionDef)]
    train = next(function for function in functions if function.name == "train")
    assert train.end_lineno - train.decorator_list[0].lineno + 1 < 15


@pytest.fixture
def run(run_config, tmp_path):
    """Runs a ClientApp with the example's settings and others; its result and its adapter."""
    table = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    values = flatten_dict(table["tool"]["flwr"]["app"]["config"])
    values |= {**run_config, "split.bottom-layers": 1, "split.top-layers": 1}

    def start(app, **changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        settings = {**values, **changes, "output-dir": str(folder)}
        grid = InProcessGrid(app, 3, run_config=settings)
        server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), settings))
        return read_result(folder / "result.json"), load_file(
            folder / "adapter" / "adapter_model.safetensors"
        )

    return start


@pytest.mark.slow
def test_it_trains_every_silo(client_app, run):
    report, _ = run(client_app)
    assert len(report.silos) == 3
    for silo in report.silos:
        assert report.losses(silo)[-1][1] < report.losses(silo)[0][1]


blocking_app = ClientApp()


@blocking_app.train()
def train_one_by_one(message, context):
    with SplitSession(message, context) as session:
        for microbatches in session.train_steps():
            targets = torch.tensor(sum(int((b["labels"][:, 1:] >= 0).sum()) for b in microbatches))
            losses = []
            for batch in microbatches:
                loss = session.model(**batch, num_items_in_batch=targets).loss
                loss.backward()
                losses.append(loss.item())
            session.optimizer.step()
            session.optimizer.zero_grad()
        return session.reply({"train-loss": sum(losses)})


@blocking_app.evaluate()
def evaluate(message, context):
    with SplitSession(message, context) as session:
        return session.reply({"eval-loss": session.evaluate().loss})


@pytest.mark.exhaustive
@pytest.mark.parametrize("in_flight", [3, 1])
def test_losses_and_adapter_equal_those_of_a_loop_that_waits(client_app, run, in_flight):
    settings = {"train.batch-size": 2, "train.accumulation": 3, "num-server-rounds": 2}
    report, adapter = run(client_app, **settings, **{"train.in-flight": in_flight})
    waited, expected = run(blocking_app, **settings)
    for silo in report.silos:
        assert report.losses(silo) == waited.losses(silo)
    assert [r.train for r in report.rounds] == [r.train for r in waited.rounds]
    assert adapter.keys() == expected.keys()
    assert all(torch.equal(adapter[name], expected[name]) for name in expected)
