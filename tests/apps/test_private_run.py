"""A run with DP-SGD: what every silo's account counts, when it ends, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from in_process_grid import RUN_ID, InProcessGrid
from tiny_checkpoint import save_tiny_run, tiny_run_config

from flower_split import SplitSession
from flower_split.apps.client_app import app as client_app
from flower_split.apps.privacy import by_example
from flower_split.apps.server_app import app as server_app
from flower_split.config.run_config import read_run_config
from flower_split.errors import FlowerSplitError
from flower_split.privacy import SampledGaussians
from flower_split.strategies import NodeRecord, SplitResult

pytest.importorskip("dp_accounting")

SILOS = 2
DP = {
    "dp.noise": 1.0,
    "dp.clip": 0.1,
    "train.max-grad-norm": 0.0,
    "train.local-epochs": 1,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = save_tiny_run(tmp_path_factory.mktemp("tiny"))
    return {**tiny_run_config(folder), "strategy.min-nodes": SILOS, **DP}


def run(
    values: dict[str, Any], folder: Path, app: ClientApp = client_app, **changes: Any
) -> dict[str, Any]:
    nodes = [{"silo": f"clinic-{n}", "state-dir": str(folder / f"state-{n}")} for n in range(SILOS)]
    values = {**values, "output-dir": str(folder / "output"), **changes}
    grid = InProcessGrid(app, SILOS, run_config=values, node_config=nodes)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), dict(values)))
    result: dict[str, Any] = json.loads((folder / "output" / "result.json").read_text())
    return result


@pytest.mark.slow
def test_steps_are_counted_over_resumed_runs_and_epsilon_is_told(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    one = run(tiny, tmp_path, **{"num-server-rounds": 1})
    two = run(tiny, tmp_path, **{"num-server-rounds": 2, "resume": True})
    (before,), (told,) = one["privacy"], two["privacy"]
    assert (
        told["kind"] == "dp-sgd"
        and told["releases"]["dp-steps"] == 2 * before["releases"]["dp-steps"]
    )
    steps, examples = told["releases"]["dp-steps"], told["releases"]["dp-examples"]
    expected = tiny["train.batch-size"] * tiny.get("train.accumulation", 1)
    release = SampledGaussians(noise=1.0, chance=expected / examples, times=steps)
    assert told["epsilon"] == pytest.approx(release.epsilon(1e-5))
    assert 0 < before["epsilon"] < told["epsilon"]
    assert "Poisson" in told["accountant"]
    for part in ("any one example", "present or absent", "Poisson sampling", "not covered"):
        assert part in told["sentence"]
    assert "Nothing is promised against whoever runs the trunk" in told["sentence"]
    card = (tmp_path / "output" / "adapter" / "README.md").read_text()
    assert f"## Privacy\n\n- {told['sentence']}\n" in card


@pytest.mark.slow
def test_a_run_ends_before_the_round_that_would_go_beyond_the_bound(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    first = run(tiny, tmp_path / "first", **{"num-server-rounds": 2})
    (told,) = first["privacy"]
    bounded = {"num-server-rounds": 5, "dp.max-epsilon": told["epsilon"] * 1.001}
    result = run(tiny, tmp_path / "second", **bounded)
    assert result["rounds"][-1]["server_round"] == 2
    (at_end,) = result["privacy"]
    assert at_end["epsilon"] == pytest.approx(told["epsilon"])


@pytest.mark.medium
def test_a_bound_that_not_one_round_keeps_is_refused_with_the_noise_that_would(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(FlowerSplitError, match=r"clinic-\d trains no further round.*dp.noise \d"):
        run(tiny, tmp_path, **{"dp.max-epsilon": 0.1})


@pytest.mark.medium
def test_fewer_examples_than_a_batch_are_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FlowerSplitError, match="a step expects 512 of them"):
        run(tiny, tmp_path, **{"train.batch-size": 8, "train.accumulation": 64})


own_loop = ClientApp()


@own_loop.train()
def train(message: Any, context: Any) -> Any:
    with SplitSession(message, context) as session:
        losses = []
        for microbatches in session.train_steps():
            losses.append(session.accumulate(microbatches).loss)
            session.optimizer.step()
            session.optimizer.zero_grad()
        return session.reply({"train-loss": sum(losses) / len(losses)})


@own_loop.evaluate()
def evaluate(message: Any, context: Any) -> Any:
    with SplitSession(message, context) as session:
        return session.reply({"eval-loss": session.evaluate().loss})


@pytest.mark.exhaustive
def test_a_loop_of_one_s_own_draws_clips_and_counts(tiny: dict[str, Any], tmp_path: Path) -> None:
    changes = {"num-server-rounds": 1, "train.accumulation": 2, "train.autocast": "bfloat16"}
    (expected,) = run(tiny, tmp_path / "ready-made", **changes)["privacy"]
    (told,) = run(tiny, tmp_path / "own", app=own_loop, **changes)["privacy"]
    assert told == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["fedprox", "scaffoldlora", "ffalora", "flora"])
def test_strategies_that_add_to_gradients_or_freeze_factors(
    tiny: dict[str, Any], tmp_path: Path, strategy: str
) -> None:
    result = run(tiny, tmp_path, **{"strategy.name": strategy, "num-server-rounds": 2})
    (told,) = result["privacy"]
    assert told["epsilon"] > 0 and not result["failure"]


@pytest.mark.parametrize("mode", ["shared", "frozen"])
@pytest.mark.medium
@pytest.mark.sampled(keep=1)
def test_other_modes_of_the_trunk(tiny: dict[str, Any], tmp_path: Path, mode: str) -> None:
    result = run(tiny, tmp_path, **{"trunk.adapters": mode, "num-server-rounds": 1})
    (told,) = result["privacy"]
    assert told["epsilon"] > 0
    assert ("whoever runs the trunk that on the trunk's part" in told["sentence"]) == (
        mode == "shared"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dp.clip": 0.0}, "DP-SGD needs both dp.noise and dp.clip"),
        ({"dp.noise": 0.0}, "DP-SGD needs both dp.noise and dp.clip"),
        ({"dp.noise": 0.0, "dp.clip": 0.0, "dp.max-epsilon": 1.0}, "dp.max-epsilon bounds"),
        ({"train.max-grad-norm": 1.0}, "train.max-grad-norm 1 would clip gradients"),
        ({"lora.dropout": 0.1}, "lora.dropout 0.1 would not be used"),
        ({"peft.type": "ia3"}, "peft.type 'IA3'"),
        ({"peft.use-dora": "true"}, "peft.use-dora"),
        ({"peft.init-lora-weights": "eva"}, "peft.init-lora-weights 'eva' begins with"),
        ({"model.quantization": "int8"}, "model.quantization 'int8'"),
        ({"model.task": "masked-lm"}, "model.task 'masked-lm'"),
        ({"data.packing": True}, "data.packing puts several examples"),
        ({"data.long-texts": "split"}, "data.long-texts 'split'"),
        ({"trunk.shares-adapter": True}, "trunk.shares-adapter brings"),
    ],
)
def test_what_would_void_the_guarantee_is_refused_by_name(
    tiny: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(FlowerSplitError, match=reason):
        read_run_config({**tiny, **changes})


def record(number: int, account: int = 7, node: int = 5, **changes: Any) -> NodeRecord:
    told = {
        "dp-account": account,
        "dp-steps": 10 * number,
        "dp-examples": 100,
        "optimizer-steps": 10,
    }
    fields = {"purpose": "train", "node_id": node, "silo": f"clinic-{node}", "statistics": told}
    return NodeRecord(server_round=number, **{**fields, **changes})


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ([], "no silo has told"),
        ([record(1), record(2, failure="gone")], "the last session of silo clinic-5 failed"),
        ([record(1), record(2, account=8)], "clinic-5 has lost its account"),
        ([record(1, statistics={})], "clinic-5 has not told"),
    ],
)
def test_nothing_is_said_where_not_all_was_counted(
    tiny: dict[str, Any], history: list[NodeRecord], reason: str
) -> None:
    told = by_example(read_run_config(tiny), [SplitResult(history=history)])
    assert told.epsilon is None and reason in told.sentence


def test_the_silo_of_which_most_was_released_counts(tiny: dict[str, Any]) -> None:
    config = read_run_config(tiny)
    alone = [record(1, account=2), record(1, account=3, node=6)]
    history = [record(1), record(2, failure="gone"), record(3), record(4, node=6, account=1)]
    told = by_example(config, [SplitResult(history=history), SplitResult(history=alone)])
    assert told.releases == {"dp-steps": 50, "dp-examples": 100}  # clinic-6: 40 and, alone, 10
    assert "of silo clinic-6" in told.sentence and "δ is not below" not in told.sentence


def test_a_delta_that_allows_anything_is_called_so(tiny: dict[str, Any]) -> None:
    config = read_run_config({**tiny, "dp.delta": 0.05})
    told = by_example(config, [SplitResult(history=[record(1)])])
    assert "δ is not below 1 over the number of examples" in told.sentence
