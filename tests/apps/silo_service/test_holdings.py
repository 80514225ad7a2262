"""Holdings with the ready-made handlers: what is kept, what is not, and equal results."""

import pytest
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from tiny_checkpoint import save_tiny_run, tiny_run_config

from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_app import app as server_app
from flower_split.apps.silo_service.caller import ask_status
from flower_split.apps.silo_service.handlers import HANDLERS
from flower_split.apps.silo_service.holdings import Holdings
from flower_split.client.model_pool import held_models, keep_models
from flower_split.client.silo_data import held_data
from flower_split.errors import ConfigError, ServiceError
from flower_split.reporting import read_result

MIB = 1 << 20


@pytest.fixture
def holdings():
    made = Holdings(64 * MIB)
    made.drop()
    yield made
    made.drop()
    keep_models(None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_run(tmp_path_factory.mktemp("tiny"))


def context(run_config, **node_config):
    return Context(RUN_ID, 5, {"silo": "a", **node_config}, RecordDict(), run_config)


def run(run_config, output, *, own=({}, {}), **node_config):
    """A whole run's result, in this process but for what a service does; `own` by silo."""
    values = {**run_config, "output-dir": str(output)}
    nodes = [{**node_config, **keys} for keys in own]
    grid = InProcessGrid(client_app, len(nodes), run_config=values, node_config=nodes)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), values))
    return read_result(output / "result.json")


def losses(result):
    return {silo: result.losses(silo) for silo in result.silos}


def adapter_bytes(output):
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.medium
def test_code_of_the_run_is_not_loaded(tiny, holdings):
    values = tiny_run_config(tiny, **{"data.path": "some_app.data:load"})
    with pytest.raises(ServiceError, match=r"some_app\.data:load. is code that comes"):
        holdings.check(context(values))


@pytest.mark.medium
def test_what_the_operator_names_is(tiny, holdings):
    values = tiny_run_config(tiny, **{"data.path": "some_app.data:load"})
    holdings.check(context(values, **{"data-path": "installed.data:load"}))
    holdings.check(context(values, **{"data-path": str(tiny / "texts.jsonl")}))


@pytest.mark.medium
def test_a_config_that_is_not_valid_is_not_taken(tiny, holdings):
    with pytest.raises(ConfigError):
        holdings.check(context(tiny_run_config(tiny), device="nowhere"))


@pytest.mark.slow
def test_a_run_with_services_equals_the_run_without(tiny, holdings, serving, folder, tmp_path):
    values = tiny_run_config(tiny, **{"strategy.min-nodes": 2, "sample-prompt": "the sum of"})
    keep_models(None)
    alone = run(values, tmp_path / "alone")
    holdings.drop()
    keep_models(64 * MIB)
    with serving(HANDLERS, holdings=holdings):
        served = run(values, tmp_path / "served", **{"service-dir": str(folder)})
        found = ask_status(folder)
        assert found.done >= 4 and found.failed == 0
        (model,) = found.models
        assert model.name == values["model.name"] and model.num_bytes > 0
        assert (model.bottom_layers, model.top_layers, model.device) == (1, 1, "cpu")
        assert [one.run_id for one in found.data] == [RUN_ID] * 2
    assert losses(served) == losses(alone)
    assert served.samples == alone.samples
    assert adapter_bytes(tmp_path / "served") == adapter_bytes(tmp_path / "alone")


CUTS = {"split.max-bottom-layers": 2, "strategy.min-nodes": 3, "num-server-rounds": 3}


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("kind", ["kept", "beyond the bound", "frozen"])
def test_silos_of_different_cuts_that_share_a_service_have_their_own_models(
    tiny, holdings, serving, folder, tmp_path, kind
):
    values = tiny_run_config(tiny, **CUTS)
    if kind == "frozen":
        values["trunk.adapters"] = "frozen"
    own = ({}, {"bottom-layers": 2}, {"bottom-layers": 1})
    keep_models(None)
    alone = run(values, tmp_path / "alone", own=own)
    holdings.drop()
    keep_models(1 if kind == "beyond the bound" else 64 * MIB)
    with serving(HANDLERS, holdings=holdings):
        served = run(values, tmp_path / "served", own=own, **{"service-dir": str(folder)})
        found = ask_status(folder)
        assert found.done >= 9 and found.failed == 0
        kept = sorted(model.bottom_layers for model in found.models)
        assert kept == ([] if kind == "beyond the bound" else [1, 2])
    assert losses(served) == losses(alone)
    assert adapter_bytes(tmp_path / "served") == adapter_bytes(tmp_path / "alone")
    one_cut = run({**values, "split.max-bottom-layers": 0}, tmp_path / "one", own=({}, {}, {}))
    if kind != "frozen":
        assert losses(one_cut) == losses(alone)
        assert adapter_bytes(tmp_path / "one") == adapter_bytes(tmp_path / "alone")


@pytest.mark.slow
def test_another_runs_data_is_not_kept_and_all_is_given_back(tiny, holdings, serving, folder):
    values = tiny_run_config(tiny, **{"strategy.min-nodes": 2, "num-server-rounds": 1})
    with serving(HANDLERS, holdings=holdings):
        grid = InProcessGrid(
            client_app, 2, run_config=values, node_config={"service-dir": str(folder)}
        )
        server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), values))
        assert len(held_data()) == 2 and len(held_models()) == 1
    assert not holdings.is_empty
    message = grid.create_message(RecordDict(), "train", 5, "")
    message.metadata.__dict__["_run_id"] = RUN_ID + 1
    holdings.begin(message, context(values))
    assert held_data() == [] and len(held_models()) == 1
    holdings.drop()
    assert holdings.is_empty and held_models() == []
