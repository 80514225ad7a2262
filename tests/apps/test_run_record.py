"""What is left of a run that Flower ended is written once, by whichever ending comes first."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.exit import exit_handler
from small_disk import fill, small_disk
from toy_trunk import TOY_PLAN, toy_config

from flower_split.apps.run_record import STOPPED, RunRecord, _save_all
from flower_split.errors import RoundError, StateError
from flower_split.reporting import read_result
from flower_split.reporting.events import EVENTS, EventLog, read_events
from flower_split.strategies import SplitResult


@pytest.fixture
def record(tmp_path):
    strategy = SimpleNamespace(result=SplitResult(), inner=FedAvg())
    return RunRecord(tmp_path, None, toy_config(), {"lora.r": 2}, strategy, None)


def failure(folder):
    return read_result(folder / "result.json").failure


def test_it_is_saved_before_flower_starts_to_count_down():
    handlers = {h.exit_handler: h for h in exit_handler.registered_exit_handlers}
    assert handlers[_save_all].run_before_force_exit


def test_an_ending_from_outside_is_saved_once(record, tmp_path):
    with pytest.raises(SystemExit), record:
        _save_all()
        assert failure(tmp_path) == STOPPED
        (tmp_path / "result.json").unlink()
        raise SystemExit(1)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.medium
def test_the_result_so_far_is_there_after_a_round_and_the_end_is_told(tmp_path):
    strategy = SimpleNamespace(result=SplitResult(seconds={1: 2.0}), inner=FedAvg())
    result = tmp_path / "result.json"
    with EventLog(tmp_path) as events:
        record = RunRecord(tmp_path, None, toy_config(), {}, strategy, None, events=events)
        with pytest.raises(RoundError), record:
            record.note_round()
            assert read_result(result).state == "running"
            raise RoundError("nobody answered")
        assert (read_result(result).state, failure(tmp_path)) == ("failed", "nobody answered")
        record.note_round()
        assert read_result(result).state == "failed"
        with RunRecord(tmp_path, None, toy_config(), {}, strategy, None, events=events):
            pass
    assert read_result(result).state == "completed"
    ended = [event.fields for event in read_events(tmp_path / EVENTS)]
    assert [(one["state"], one["why"]) for one in ended] == [
        ("failed", "nobody answered"),
        ("completed", ""),
    ]
    assert ended[0]["left"] == ["result.json", "losses.png", "report.html"]


def test_a_result_so_far_that_cannot_be_written_ends_no_run(record, tmp_path, caplog):
    (tmp_path / "result.json").mkdir()
    record.note_round()
    assert "result.json is not written" in caplog.text


def test_a_record_that_is_closed_is_left_alone(record, tmp_path):
    with record:
        pass
    assert failure(tmp_path) == ""
    (tmp_path / "result.json").unlink()
    _save_all()
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RoundError("round 1: nobody answered"), "round 1: nobody answered"),
        (KeyboardInterrupt(), STOPPED),
        (ValueError("a secret"), "ValueError; the ServerApp's log has the rest"),
    ],
)
def test_the_reason_is_told_and_foreign_text_is_not(record, tmp_path, error, said):
    with pytest.raises(type(error)), record:
        raise error
    assert failure(tmp_path) == said


def test_a_full_disk_is_named_unless_the_run_itself_failed(tmp_path, caplog):
    strategy = SimpleNamespace(
        result=SplitResult(adapter={"top.A": torch.zeros(1 << 16)}), inner=FedAvg()
    )
    plan = replace(TOY_PLAN, shapes=(("top.A", (1 << 16,)),))
    given = toy_config()
    said = r"cannot be written to .*: No space left on device.*resume it or export"
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        with (
            pytest.raises(StateError, match=said),
            RunRecord(disk, plan, given, {}, strategy, None),
        ):
            pass
        with (
            pytest.raises(RoundError, match="nobody answered"),
            RunRecord(disk, plan, given, {}, strategy, None),
        ):
            raise RoundError("nobody answered")
        assert "No space left on device" in caplog.text
        (disk / "filler").unlink()
        (disk / "filler").write_bytes(bytes(100_000))
        # Room for result.json, and not for the adapter.
        with (
            pytest.raises(StateError, match=said),
            RunRecord(disk, plan, given, {}, strategy, None),
        ):
            pass
        assert read_result(disk / "result.json").failure == ""
        assert list((disk / "adapter").iterdir()) == []
