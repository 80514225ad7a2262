"""A silo's ledger: what it holds of a run, and that nothing leaves where it cannot be written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from tiny_checkpoint import save_tiny_run, tiny_run_config
from typer.testing import CliRunner

from flower_split.apps.cli import cli
from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_app import app as server_app
from flower_split.errors import FlowerSplitError
from flower_split.ledger import read_entries, verify
from flower_split.reporting import read_result

pytestmark = pytest.mark.medium

SILOS, ROUNDS = 2, 2


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tiny = save_tiny_run(tmp_path_factory.mktemp("tiny"))
    return {
        **tiny_run_config(tiny),
        "num-server-rounds": ROUNDS,
        "strategy.min-nodes": SILOS,
        "output-dir": str(tmp_path_factory.mktemp("output")),
    }


def run(values: dict[str, Any], folder: Path) -> None:
    nodes = [{"ledger-dir": str(folder), "silo": f"clinic-{n}"} for n in range(SILOS)]
    grid = InProcessGrid(client_app, SILOS, run_config=values, node_config=nodes)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), dict(values)))


@pytest.fixture(scope="module")
def ledgers(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledgers")
    run(values, folder)
    return folder


def silo(ledgers: Path, number: int = 0) -> Path:
    return sorted(ledgers.iterdir())[number]


def test_all_that_left_is_accounted_for(values: dict[str, Any], ledgers: Path) -> None:
    """The sums agree with what the run tells of the wire."""
    result = read_result(Path(values["output-dir"], "result.json"))
    for number in range(SILOS):
        entries = [entry.fields for entry in read_entries(silo(ledgers, number))]
        sessions = [one for one in entries if one["kind"] == "session"]
        assert {one["silo"] for one in sessions} == {f"clinic-{number}"}
        assert [one for one in entries if one["kind"] == "reply"]
        trained = {one["session"] for one in sessions if one["purpose"] == "train" and one["round"]}
        assert len(trained) == ROUNDS
        sent = sum(
            one["bytes"] for one in entries if one["kind"] == "tensor" and one["session"] in trained
        )
        told = sum(
            counters["bytes-sent"]
            for one in result.rounds
            for name, counters in one.train_counters.items()
            if name == f"clinic-{number}"
        )
        assert sent == told > 0


def test_it_tells_what_and_where_to_and_no_content(ledgers: Path) -> None:
    entries = [entry.fields for entry in read_entries(silo(ledgers))]
    tensors = [one for one in entries if one["kind"] == "tensor"]
    assert {"h1", "g2", "attention_mask"} <= {one["role"] for one in tensors}
    assert {one["codec"] for one in tensors if one["role"] == "h1"} == {"fp32"}
    assert all(re.fullmatch("[0-9a-f]{64}", one["sha256"]) for one in tensors)
    fields = {name for one in tensors for name in one}
    assert fields == {"kind", "role", "dtype", "shape", "codec", "bytes", "sha256", "session"}
    begun = next(one for one in entries if one["kind"] == "session")
    assert begun["destination"].startswith("127.0.0.1:") and begun["run"] == str(RUN_ID)
    (reply, *_) = (one for one in entries if one["kind"] == "reply" and one["arrays"])
    assert reply["bytes"] > 0 and "num-examples" in reply["metrics"]


def test_another_run_goes_on_with_the_chain(values: dict[str, Any], ledgers: Path) -> None:
    before = verify(silo(ledgers)).entries
    run({**values, "output-dir": ""}, ledgers)
    assert verify(silo(ledgers)).entries == 2 * before


def test_nothing_leaves_that_cannot_be_noted(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ledgers").write_text("")
    with pytest.raises(FlowerSplitError, match=r"(?s)clinic-[01].*cannot be written"):
        run({**values, "output-dir": ""}, tmp_path / "ledgers")


def test_the_commands(ledgers: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(cli, ["ledger", "show", str(silo(ledgers)), "--kind", "reply"])
    assert {json.loads(line)["kind"] for line in shown.stdout.splitlines()} == {"reply"}
    whole = runner.invoke(cli, ["ledger", "verify", str(silo(ledgers))])
    assert whole.exit_code == 0 and whole.stdout.startswith("whole: ")
    several = runner.invoke(cli, ["ledger", "verify", str(ledgers)])
    assert several.exit_code == 1 and "several silos" in several.output
    file = sorted(silo(ledgers, 1).glob("ledger-*.jsonl"))[0]
    file.write_bytes(file.read_bytes().replace(b'"role":"h1"', b'"role":"h2"', 1))
    broken = runner.invoke(cli, ["ledger", "verify", str(silo(ledgers, 1))])
    assert broken.exit_code == 1 and "was changed" in broken.output
