"""Reading events while they are written: what is half there waits, what is none is passed over."""

import pytest

from flower_split.errors import DataError
from flower_split.reporting.events import EVENTS, EventLog, EventTail, read_events
from flower_split.reporting.events.kinds import LONGEST, header, line_of
from flower_split.reporting.events.reading import CHUNK


def line(number):
    return line_of("round-begun", {"round": number, "rounds": 9}, n=number, time=1.0)


def read(tail):
    return [event.fields["round"] for event in tail.read()]


def test_events_come_once_and_half_of_one_waits(tmp_path):
    path = tmp_path / EVENTS
    tail = EventTail(path)
    assert read(tail) == [] and not tail.begun_anew
    with path.open("wb", buffering=0) as file:
        file.write(header()[:10])
        assert read(tail) == []
        file.write(header()[10:] + line(1) + line(2)[:15])
        assert read(tail) == [1]
        assert read(tail) == []
        file.write(line(2)[15:])
        assert read(tail) == [2]


def test_a_run_that_begins_anew_is_noticed(tmp_path):
    tail = EventTail(tmp_path / EVENTS)
    with EventLog(tmp_path) as log:
        log.tell("round-begun", round=1, rounds=1)
    assert read(tail) == [1] and not tail.begun_anew
    with EventLog(tmp_path) as log:
        log.tell("round-begun", round=5, rounds=1)
        assert read(tail) == [5] and tail.begun_anew
        assert read(tail) == [] and not tail.begun_anew


def test_a_line_that_is_no_event_costs_itself_alone(tmp_path):
    strange = [b"[" * 10_000, b"7", b"{}", b'{"n":1}', b'{"n":true,"time":1,"kind":"x"}', b"\xff"]
    strange += [line(3).strip().replace(b"1.0", b"1" * 400), line(4).strip().replace(b"9", b"NaN")]
    strange += [line(5).strip().replace(b"9", b"1e999")]
    halves = (rb"\ud800", b"\xed\xa0\x80")
    strange += [line(6).strip().replace(b"rounds", half) for half in halves]
    content = header() + line(1) + b"\n".join(strange) + b"\n" + line(2)
    (tmp_path / EVENTS).write_bytes(content)
    assert read(EventTail(tmp_path / EVENTS)) == [1, 2]


def test_a_line_without_an_end_is_given_up(tmp_path):
    content = header() + line(1) + b"x" * (CHUNK + LONGEST) + b"\n" + line(2)
    (tmp_path / EVENTS).write_bytes(content)
    assert read(EventTail(tmp_path / EVENTS)) == [1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"format":"flower_split.events","version":9}\n', "version 9, and this .* reads 1"),
        (b"notes\n", "no file of events"),
        (b"[]\n", "no file of events"),
        (b"\xff\n", "no file of events"),
    ],
)
def test_a_file_of_another_version_is_refused_every_time(tmp_path, content, said):
    (tmp_path / EVENTS).write_bytes(content)
    tail = EventTail(tmp_path / EVENTS)
    for _ in range(2):
        with pytest.raises(DataError, match=said):
            tail.read()


def test_a_folder_without_events_is_named(tmp_path):
    with pytest.raises(DataError, match=f"no {tmp_path / EVENTS}"):
        read_events(tmp_path / EVENTS)
    (tmp_path / EVENTS).mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_events(tmp_path / EVENTS)
