"""The file of events: whole lines, one writer, and what a kill or a full disk leaves of it."""

import json
import os
import signal
import subprocess
import sys

import pytest
from small_disk import fill, small_disk

from flower_split.errors import StateError
from flower_split.reporting.events import EVENTS, EventLog, EventTail, read_events
from flower_split.reporting.events.log import PREVIOUS


def rounds(folder):
    return [event.fields["round"] for event in read_events(folder / EVENTS)]


def tell(folder, *numbers, resume=False):
    with EventLog(folder, resume=resume) as log:
        for number in numbers:
            log.tell("round-begun", round=number, rounds=9)


def test_every_event_is_a_line_after_one_that_tells_the_version(tmp_path):
    tell(tmp_path / "new", 1, 2)
    first, *lines = (tmp_path / "new" / EVENTS).read_text().splitlines()
    assert json.loads(first) == {"format": "flower_split.events", "version": 1}
    told = [json.loads(line) for line in lines]
    assert [(one["n"], one["kind"], one["round"]) for one in told] == [
        (0, "round-begun", 1),
        (1, "round-begun", 2),
    ]
    assert (tmp_path / "new" / EVENTS).stat().st_mode & 0o077 == 0


def test_a_run_that_begins_anew_sets_the_events_of_the_one_before_aside(tmp_path):
    tell(tmp_path, 1)
    tell(tmp_path, 2)
    tell(tmp_path, 3)
    assert rounds(tmp_path) == [3]
    kept = [event.fields["round"] for event in EventTail(tmp_path / PREVIOUS).read()]
    assert kept == [2]


@pytest.mark.parametrize("half", [b'{"n":2,"time":1,"kin', b'{"n":2', b"\xff\xfe"])
def test_a_run_that_is_resumed_goes_on_behind_the_last_whole_line(tmp_path, half):
    tell(tmp_path, 1, 2)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(half)
    tell(tmp_path, 3, resume=True)
    found = read_events(tmp_path / EVENTS)
    assert [(event.n, event.fields["round"]) for event in found] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    "content", [b'{"format":"flower_split.events","version":2}\n', b"notes\n", b'{"format":"fl']
)
def test_what_this_version_cannot_continue_is_set_aside(tmp_path, content):
    (tmp_path / EVENTS).write_bytes(content)
    tell(tmp_path, 1, resume=True)
    assert rounds(tmp_path) == [1]
    assert (tmp_path / PREVIOUS).read_bytes() == content


def test_a_killed_writer_leaves_whole_lines_that_a_resumed_run_continues(tmp_path):
    writes = (
        "import sys; from pathlib import Path\n"
        "from flower_split.reporting.events import EventLog\n"
        "with EventLog(Path(sys.argv[1])) as log:\n"
        "    for number in range(10**9):\n"
        "        log.tell('round-begun', round=number, rounds=1)\n"
        "        if number == 50: print(flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", writes, str(tmp_path)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    before = rounds(tmp_path)
    assert before == list(range(len(before))) and len(before) > 50
    tell(tmp_path, 7, resume=True)
    assert rounds(tmp_path) == [*before, 7]


def test_a_folder_has_one_writer(tmp_path):
    with EventLog(tmp_path) as log:
        log.tell("round-begun", round=1, rounds=1)
        with pytest.raises(StateError, match="another run writes its events"), EventLog(tmp_path):
            pass
        assert rounds(tmp_path) == [1]
    tell(tmp_path, 2, resume=True)
    assert rounds(tmp_path) == [1, 2]


def test_no_link_is_followed(tmp_path):
    (tmp_path / EVENTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="symbolic link"), EventLog(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_ends_nothing_and_leaves_no_half_line(tmp_path, caplog):
    with small_disk(tmp_path / "disk") as disk, EventLog(disk) as log:
        log.tell("round-begun", round=1, rounds=1)
        fill(disk)
        for number in range(2000):  # beyond what was left of the file's last block
            log.tell("silo-left", silo="x" * 400, why=str(number))
        (disk / "filler").unlink()
        log.tell("round-begun", round=2, rounds=1)
        whole = (disk / EVENTS).read_bytes()
        found = read_events(disk / EVENTS)
    assert whole.endswith(b"\n") and all(json.loads(line) for line in whole.splitlines())
    assert [e.fields["round"] for e in found if e.kind == "round-begun"] == [1, 2]
    assert [e.n for e in found] == sorted({e.n for e in found})
    assert caplog.text.count("is missing in") == 1


def test_a_log_that_is_closed_tells_nothing(tmp_path):
    with EventLog(tmp_path) as log:
        pass
    log.close()
    log.tell("round-begun", round=1, rounds=1)
    assert rounds(tmp_path) == []


def test_a_child_process_does_not_keep_the_file_from_the_next_run(tmp_path):
    with EventLog(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        tell(tmp_path, 1)
        assert rounds(tmp_path) == [1]
        assert os.path.exists(f"/proc/{child.pid}") or sys.platform != "linux"
    finally:
        child.communicate(b"\n")
