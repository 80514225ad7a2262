"""The example with an own training loop, run as it is."""

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.common.config import flatten_dict
from in_process_grid import RUN_ID, InProcessGrid

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


def test_it_trains_every_silo(client_app, run_config, tmp_path):
    table = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    values = flatten_dict(table["tool"]["flwr"]["app"]["config"])
    values |= {**run_config, "split.bottom-layers": 1, "split.top-layers": 1}
    values["output-dir"] = str(tmp_path)
    grid = InProcessGrid(client_app, 3, run_config=values)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), values))
    report = read_result(tmp_path / "result.json")
    assert len(report.silos) == 3
    for silo in report.silos:
        assert report.losses(silo)[-1][1] < report.losses(silo)[0][1]
