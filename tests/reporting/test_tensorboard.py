"""What TensorBoard's own reader finds in the files of a run."""

import importlib.util
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hosting import eventually

from flower_split.errors import ConfigError
from flower_split.reporting import RoundResult, RunResult
from flower_split.reporting.tensorboard import ScalarWriter, folder_name, scalars

installed = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="the extra flower-split[tensorboard] is not installed",
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def read(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Every TensorBoard run in `folder`: (step, value) of each tag, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for run in folder.iterdir():
        events = EventAccumulator(str(run)).Reload()
        found[run.name] = {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }
    return found


def write(folder: Path, *rounds: RoundResult) -> None:
    with ScalarWriter(folder) as writer:
        for one in rounds:
            writer.write(one)


def with_counters(one: RoundResult, counters: Mapping[str, float]) -> RoundResult:
    return replace(one, train_counters={"0": counters}, failures={"10": "gone"})


@installed
def test_every_scalar_is_read_back_by_silo_and_round(result: RunResult, tmp_path: Path) -> None:
    rounds = list(result.rounds)
    rounds[2] = with_counters(rounds[2], {"bytes-h1": 1 << 20, "tokens-per-second": 12.5})
    write(tmp_path / "new" / "folder", *rounds)
    found = read(tmp_path / "new" / "folder")
    assert set(found) == {"run", "silo-0", "silo-1", "silo-10"}
    assert found["silo-1"]["evaluate/eval-loss"] == [(0, 3.5), (1, 2.5), (2, 1.5)]
    assert found["silo-1"]["train/train-loss"] == [(1, 2.5), (2, 1.5)]
    assert found["silo-0"]["train-counters/bytes-h1"] == [(2, float(1 << 20))]
    assert found["silo-0"]["train-counters/tokens-per-second"] == [(2, 12.5)]
    assert found["run"]["round/silos-that-failed"] == [(0, 0.0), (1, 0.0), (2, 1.0)]
    assert found["run"]["aggregated/eval-loss"] == [(0, 3.5), (1, 2.5), (2, 1.5)]
    written = {(run, tag) for one in rounds for run, tag, _ in scalars(one)}
    assert written == {(run, tag) for run, tags in found.items() for tag in tags}


@installed
def test_a_round_is_there_as_soon_as_it_is_written(result: RunResult, tmp_path: Path) -> None:
    with ScalarWriter(tmp_path / "here") as writer:
        writer.write(result.rounds[0])
        assert read(tmp_path / "here")["silo-0"]["evaluate/eval-loss"] == [(0, 3.0)]


@installed
def test_a_round_that_is_done_again_takes_its_own_place(result: RunResult, tmp_path: Path) -> None:
    first, second, third = result.rounds
    folder = tmp_path / "tensorboard"
    write(folder, first, second)
    began = int(time.time())  # files are read in the order of their seconds
    assert eventually(lambda: int(time.time()) > began)
    write(folder, replace(third, server_round=1), replace(third, server_round=2))
    assert read(folder)["silo-0"]["evaluate/eval-loss"] == [(0, 3.0), (1, 1.0), (2, 1.0)]


@installed
def test_a_new_run_sets_an_older_one_s_aside(result: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    for _ in range(3):
        write(folder, result.rounds[0])
    assert {path.name for path in tmp_path.iterdir()} == {
        "tensorboard",
        "tensorboard.1",
        "tensorboard.2",
    }
    assert read(folder)["silo-0"]["evaluate/eval-loss"] == [(0, 3.0)]


@installed
def test_a_disk_that_refuses_ends_no_run(
    result: RunResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "file" / "tensorboard", result.rounds[1])
    assert "round 1 is not written for TensorBoard" in caplog.text


@pytest.mark.parametrize(
    "name", ["..", "../../x", "a/b", "a b", "", "x" * 300, "\ud800", "klinik-ü"]
)
def test_no_name_of_a_silo_leaves_the_folder(name: str, tmp_path: Path) -> None:
    made = folder_name(name)
    assert (tmp_path / made).resolve().parent == tmp_path.resolve()
    assert made.startswith("silo-") and len(made) < 90 and made.isascii()


def test_different_silos_have_different_folders() -> None:
    names = ["a/b", "a_b", "a b", "a.b", "a-b", "x" * 64, "x" * 65, "x" * 66]
    assert len({folder_name(name) for name in names}) == len(names)
    assert folder_name("clinic-3") == "silo-clinic-3"


def test_a_missing_package_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'flower-split\[tensorboard\]'"):
        ScalarWriter(tmp_path)
