"""A run's folder as it is read: before it begins, while it goes, begun anew, of another version."""

import pytest

from flower_split.apps.monitoring import watched_run
from flower_split.apps.monitoring.watched_run import WatchedRun
from flower_split.reporting.events import EVENTS, EventLog


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setattr(watched_run, "EVERY", 0.0)


def files(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_what_comes_is_seen_and_the_folder_stays_as_it_is(run, log, loss):
    watched = WatchedRun(run)
    before = files(run)
    assert "tiny-model" in watched.parts()["top"] and "3.25" in watched.parts()["silos"]
    assert files(run) == before
    loss(log, "south", 1, 2.5)
    assert "2.5" in watched.parts()["silos"]


def test_a_run_that_has_not_begun_is_waited_for(run, tmp_path):
    watched = WatchedRun(tmp_path)
    assert "Nothing has been written yet" in watched.parts()["top"]
    with EventLog(tmp_path) as log:
        log.tell("silo-joined", silo="north")
        assert "north" in watched.parts()["silos"]


def test_a_run_that_begins_anew_is_shown_alone(run, log):
    watched = WatchedRun(run)
    assert "north" in watched.parts()["silos"]
    log.close()
    with EventLog(run) as anew:
        anew.tell("silo-joined", silo="east")
        parts = watched.parts()
    assert "east" in parts["silos"] and "north" not in parts["silos"]


def test_half_an_event_is_waited_for(run, log):
    watched = WatchedRun(run)
    watched.parts()
    with (run / EVENTS).open("ab", buffering=0) as file:
        file.write(b'{"n":99,"time":1,"kind":"silo-joined","si')
        assert "late" not in watched.parts()["silos"]
        file.write(b'lo":"late"}\n')
    assert "late" in watched.parts()["silos"]


def test_another_version_is_said_in_place_of_the_run(run, tmp_path):
    (tmp_path / EVENTS).write_bytes(b'{"format":"flower_split.events","version":9}\n')
    watched = WatchedRun(tmp_path)
    for _ in range(2):
        parts = watched.parts()
        assert "events of version 9" in parts["top"] and parts["silos"] == ""


def test_samples_are_those_of_the_result(run, write_sample):
    watched = WatchedRun(run)
    assert watched.parts()["samples"] == ""
    write_sample(0, "once upon")
    assert "once upon" in watched.parts()["samples"]
    write_sample(3, "a time")
    assert "a time" in watched.parts()["samples"]
    (run / "result.json").write_text("{")
    assert watched.parts()["samples"] == ""
