"""A run with noise at the cuts: what leaves, what is counted, and what is said of it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from tiny_checkpoint import save_tiny_run, tiny_run_config

from flower_split.apps.client_app import app as client_app
from flower_split.apps.privacy import cut_noise
from flower_split.apps.server_app import app as server_app
from flower_split.config.run_config import read_run_config
from flower_split.errors import FlowerSplitError
from flower_split.ledger import read_entries
from flower_split.privacy import Gaussians
from flower_split.strategies import NodeRecord, SplitResult

pytest.importorskip("dp_accounting")
pytestmark = pytest.mark.medium

SILOS = 2
NOISE = {"wire.h1-clip": 4.0, "wire.h1-noise": 0.5, "wire.g2-clip": 0.1, "wire.g2-noise": 0.25}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = save_tiny_run(tmp_path_factory.mktemp("tiny"))
    return {
        **tiny_run_config(folder),
        "strategy.min-nodes": SILOS,
        "sample-prompt": "the sum of",
        **NOISE,
    }


def run(values: dict[str, Any], folder: Path, output: str, **changes: Any) -> dict[str, Any]:
    """The result of a run whose silos keep ledger and states in `folder`."""
    nodes = [
        {
            "silo": f"clinic-{n}",
            "state-dir": str(folder / f"state-{n}"),
            "ledger-dir": str(folder / f"ledger-{n}"),
        }
        for n in range(SILOS)
    ]
    values = {**values, "output-dir": str(folder / output), **changes}
    grid = InProcessGrid(client_app, SILOS, run_config=values, node_config=nodes)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), dict(values)))
    result: dict[str, Any] = json.loads((folder / output / "result.json").read_text())
    return result


def left(folder: Path, silo: int = 0) -> list[dict[str, Any]]:
    """h1 and g2 of a silo, in the order in which they left."""
    (ledger,) = (folder / f"ledger-{silo}").iterdir()
    entries = [entry.fields for entry in read_entries(ledger)]
    return [one for one in entries if one.get("role") in ("h1", "g2")]


def rows(folder: Path, silo: int) -> Counter[str]:
    counted: Counter[str] = Counter()
    for one in left(folder, silo):
        counted[one["role"]] += one["shape"][0] * one["shape"][1]
    return counted


@pytest.fixture(scope="module")
def folder(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of one round that was resumed for a second one."""
    folder = tmp_path_factory.mktemp("noisy")
    run(tiny, folder, "output", **{"num-server-rounds": 1})
    run(tiny, folder, "output", **{"num-server-rounds": 2, "resume": True})
    return folder


@pytest.mark.exhaustive
def test_all_that_left_is_counted_over_resumed_runs(tiny: dict[str, Any], folder: Path) -> None:
    """Training, evaluation and the continued prompt, as the ledgers have it, and ε of all of it."""
    result = json.loads((folder / "output" / "result.json").read_text())
    (told,) = result["privacy"]
    by_silo = [rows(folder, silo) for silo in range(SILOS)]
    squares = [4 * (one["h1"] / 0.5**2 + one["g2"] / 0.25**2) for one in by_silo]
    most = by_silo[squares.index(max(squares))]
    assert told["releases"] == {"h1-rows": most["h1"], "g2-rows": most["g2"]}
    assert told["epsilon"] == pytest.approx(Gaussians(mu_squared=max(squares)).epsilon(1e-5))
    assert told["delta"] == 1e-5 and told["accountant"].startswith("dp-accounting ")
    assert "which is no meaningful guarantee" in told["sentence"]
    assert "h1 and g2 alone" in told["sentence"] and "not covered" in told["sentence"]
    card = (folder / "output" / "adapter" / "README.md").read_text()
    assert f"## Privacy\n\n- {told['sentence']}\n" in card


@pytest.mark.slow
def test_a_resumed_run_repeats_no_noise(tiny: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """Nor does one that is the same from the start: without noise, it sends the same again."""
    digests = [one["sha256"] for one in left(folder)]
    assert len(set(digests)) == len(digests)
    run(tiny, tmp_path / "again", "output", **{"num-server-rounds": 1})
    assert not {*digests} & {one["sha256"] for one in left(tmp_path / "again")}
    plain = {name: value for name, value in tiny.items() if name not in NOISE}
    twice = []
    for name in ("one", "other"):
        result = run(plain, tmp_path / name, "output", **{"num-server-rounds": 1})
        assert result["privacy"] == []
        twice.append([one["sha256"] for one in left(tmp_path / name)])
    assert twice[0] == twice[1]


def test_nothing_is_said_where_one_hop_has_no_noise(tiny: dict[str, Any], tmp_path: Path) -> None:
    (told,) = run(tiny, tmp_path, "output", **{"wire.g2-noise": 0.0, "num-server-rounds": 1})[
        "privacy"
    ]
    assert told["epsilon"] is None
    assert told["sentence"] == (
        "Noise at the cuts: no formal guarantee, because g2 left without noise (wire.g2-noise is "
        "0)."
    )


def test_a_server_without_the_accountant_refuses_the_run(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flower_split.privacy.accountant.MODULE", "not_installed_here")
    with pytest.raises(FlowerSplitError, match=r"pip install 'flower-split\[privacy\]'"):
        run(tiny, tmp_path, "output")


def record(number: int, account: int = 7, node: int = 5, **changes: Any) -> NodeRecord:
    told = {"noise-account": account, "h1-rows": 10 * number, "g2-rows": 9 * number}
    fields = {"purpose": "train", "node_id": node, "silo": f"clinic-{node}", "statistics": told}
    return NodeRecord(server_round=number, **{**fields, **changes})


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ([], "no silo has told"),
        ([record(1), record(2, failure="gone")], "the last session of silo clinic-5 failed"),
        ([record(1), record(2, account=8)], "clinic-5 has lost its account"),
        ([record(1, statistics={})], "clinic-5 has not told"),
        ([record(1), record(1, node=6, account=1, statistics={})], "clinic-6 has not told"),
    ],
)
def test_nothing_is_said_where_not_all_was_counted(
    tiny: dict[str, Any], history: list[NodeRecord], reason: str
) -> None:
    told = cut_noise(read_run_config(tiny), [SplitResult(history=history)])
    assert told.epsilon is None and reason in told.sentence


def test_the_silo_of_which_most_left_counts_and_failures_before_the_last_reply(
    tiny: dict[str, Any],
) -> None:
    config = read_run_config(tiny)
    alone = [record(1, account=2), record(1, account=3, node=6)]
    history = [record(1), record(2, failure="gone"), record(3), record(4, node=6, account=1)]
    told = cut_noise(config, [SplitResult(history=history), SplitResult(history=alone)])
    assert told.releases == {"h1-rows": 50, "g2-rows": 45}  # clinic-6: 40 and, alone, 10
    assert "most has left silo clinic-6" in told.sentence


def test_both_kinds_are_told_of_a_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    central = {"strategy.dp-noise": 8.0, "strategy.dp-clip": 0.5, "strategy.dp-delta": 1e-6}
    result = run(tiny, tmp_path, "output", **{**central, "num-server-rounds": 2})
    told, noise = result["privacy"]
    assert (told["kind"], noise["kind"]) == ("central", "cut-noise")
    expected = Gaussians().released(sensitivity=2.0, deviation=8.0, times=2)
    assert told["epsilon"] == expected.epsilon(1e-6) < 20
    assert told["releases"] == {"rounds": 2}
    assert "published in 2 rounds; noise of 8 times the clipping norm 0.5" in told["sentence"]
    assert "It trusts whoever runs the server" in told["sentence"]
    card = (tmp_path / "output" / "adapter" / "README.md").read_text()
    assert f"- {told['sentence']}\n- {noise['sentence']}\n" in card
