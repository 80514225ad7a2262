"""A real deployment whose SuperNodes have chosen different cuts in their node configs."""

import pytest
from federation import COMPLETED, Federation, Node, write_app
from in_process_grid import FIRST_NODE, InProcessGrid
from safetensors.torch import load_file
from split_run import TOLERANCE, largest_difference

from flower_split.apps.client_app import app as ready_made
from flower_split.config.run_config import read_run_config
from flower_split.reporting import read_result
from flower_split.strategies import SplitStrategy, build_inner

pytestmark = [pytest.mark.timeout(900), pytest.mark.exhaustive]

SILOS = 3


def test_supernodes_choose_their_cuts_and_the_run_is_that_of_one_cut(tiny, tmp_path, state_home):
    config = {
        **tiny.config,
        "num-server-rounds": 2,
        "strategy.min-nodes": SILOS,
        "strategy.min-replies": 2,
        "train.local-steps": 3,
        "evaluate-initial": False,
    }
    bounds = {"split.max-bottom-layers": 2}
    app = write_app(tmp_path / "app", {**config, **bounds})
    chosen = [{}, {"bottom-layers": 2}, {"bottom-layers": 3}]  # and the last one may not
    nodes = [
        Node(config={"partition-id": number, "num-partitions": SILOS, **own})
        for number, own in enumerate(chosen)
    ]
    out = tmp_path / "out"
    with Federation(tmp_path / "federation", nodes) as federation:
        own = set(federation.listening())
        ended = federation.run(app, output_dir=str(out))
        assert ended.status == COMPLETED, f"{ended}\n{federation.logs()}"
        federation.assert_idle(own)
    report = read_result(out / "result.json")
    assert report.parameter_share["0"] < report.parameter_share["1"]
    (failure,) = {one for each in report.rounds for one in each.failures.values()}
    assert "bottom-layers 3, and silos of this run may hold 1 to 2" in failure

    one_cut = read_run_config(config)
    grid = InProcessGrid(ready_made, SILOS, run_config=config, drop={FIRST_NODE + SILOS - 1})
    inner = build_inner(one_cut.strategy, one_cut.lora)
    theirs = SplitStrategy(one_cut, inner).start(grid, timeout=5.0)
    ours = load_file(out / "adapter" / "adapter_model.safetensors")
    assert largest_difference(ours, theirs.adapter) <= 100 * TOLERANCE  # threads may differ
