import json
import os
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.errors import LedgerError
from flower_split.ledger import Ledger, read_entries, verify
from flower_split.ledger.book import ledger_files


def told(count, start=0):
    return [{"kind": "tensor", "bytes": number} for number in range(start, start + count)]


def numbers(folder):
    return [entry.fields["bytes"] for entry in read_entries(folder)]


def filled(folder, count=10, **bounds):
    ledger = Ledger(folder, **bounds)
    for number in range(count):
        ledger.append(told(1, number))
    ledger.commit()
    ledger.close()
    return folder


def test_what_is_appended_is_read_in_its_order(tmp_path):
    folder = filled(tmp_path / "ledger")
    found = list(read_entries(folder))
    assert [entry.n for entry in found] == list(range(10)) == numbers(folder)
    assert all(one.hash == other.previous for one, other in pairwise(found))
    assert verify(folder).kinds == {"tensor": 10}
    assert verify(folder).hash == found[-1].hash


def test_files_and_folder_are_their_owners(tmp_path):
    folder = filled(tmp_path / "ledger")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_another_process_goes_on_with_the_chain(tmp_path):
    folder = filled(tmp_path / "ledger", 3)
    code = (
        "from pathlib import Path; from flower_split.ledger import Ledger; import sys; "
        "ledger = Ledger(Path(sys.argv[1])); "
        "[ledger.append([{'kind': 'tensor', 'bytes': n}]) for n in range(3, 6)]; ledger.commit()"
    )
    open_here = Ledger(folder)
    open_here.append([{"kind": "tensor", "bytes": 99}])
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    open_here.append([{"kind": "tensor", "bytes": 100}])
    open_here.commit()
    assert numbers(folder) == [0, 1, 2, 99, 3, 4, 5, 100]


def test_a_line_that_a_killed_process_had_begun_is_cut_off(tmp_path):
    folder = filled(tmp_path / "ledger", 4)
    (file,) = ledger_files(folder)
    with file.open("ab") as opened:
        opened.write(b'{"bytes":4,"ki')
    assert numbers(folder) == [0, 1, 2, 3]
    Ledger(folder).append(told(1, 4))
    assert numbers(folder) == [0, 1, 2, 3, 4]


def test_old_files_go_and_the_chain_holds(tmp_path):
    folder = filled(tmp_path / "ledger", 40, max_file_bytes=600, max_files=3)
    assert len(ledger_files(folder)) == 3
    found = verify(folder)
    assert found.first > 0
    assert numbers(folder) == list(range(found.first, 40))
    Ledger(folder, max_file_bytes=600, max_files=3).append(told(1, 40))
    assert numbers(folder)[-1] == 40


def change(lines):
    fields = json.loads(lines[4])
    lines[4] = json.dumps({**fields, "bytes": 5000}, sort_keys=True, separators=(",", ":")).encode()


def cut_out(lines):
    del lines[4]


def reorder(lines):
    lines[4], lines[5] = lines[5], lines[4]


def cut_off(lines):
    del lines[-1]


def change_the_last(lines):
    lines[-1] = lines[-1].replace(b'"bytes":9', b'"bytes":8')


def repeat(lines):
    lines.append(lines[-1])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (change, "line 6: .*entry 4 was changed"),
        (cut_out, "line 5: entry 5, expected 4"),
        (reorder, "line 5: entry 5, expected 4"),
        (cut_off, "ends with entry 8, and entry 9 had been committed"),
        (change_the_last, "line 10: it is not the entry 9 that was committed"),
        (repeat, "line 11: entry 9, expected 10"),
    ],
)
def test_what_was_done_to_a_ledger_is_found(tmp_path, how, said):
    folder = filled(tmp_path / "ledger")
    (file,) = ledger_files(folder)
    lines = file.read_bytes().splitlines()
    how(lines)
    file.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(LedgerError, match=said):
        verify(folder)


NEXT = "ledger-000000000099.jsonl"
HEAD = {"entries": 1, "hash": "0" * 64, "first": 0, "before": "0" * 64, "version": 1}


def in_place(name, content):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return make


def linked(folder):
    (folder / NEXT).symlink_to(ledger_files(folder)[0])


PLANTED = {
    "an empty file after an empty one": lambda folder: [
        path.write_bytes(b"") for path in (*ledger_files(folder), folder / NEXT)
    ],
    "a folder": lambda folder: (folder / NEXT).mkdir(),
    "a pipe, which would be waited for": lambda folder: os.mkfifo(folder / NEXT),
    "a link": linked,
    "a head without end": in_place("head.json", b"[" * 10**5),
    "a head of other kinds": in_place("head.json", json.dumps({**HEAD, "entries": True}).encode()),
    "a head of lists": in_place("head.json", json.dumps({**HEAD, "hash": ["0"] * 64}).encode()),
    "a line without end": in_place(NEXT, b" " * (1 << 17)),
    "no number": in_place(NEXT, b'{"n":true,"previous":"","time":""}\n'),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_was_planted_in_a_ledger_is_one_clear_error(tmp_path, planted):
    folder = filled(tmp_path / "ledger")
    PLANTED[planted](folder)
    with pytest.raises(LedgerError):
        verify(folder)
    with suppress(LedgerError):
        Ledger(folder).append(told(1))


def test_files_of_other_names_are_no_part_of_a_ledger(tmp_path):
    folder = filled(tmp_path / "ledger")
    (folder / "ledger-old.jsonl").write_bytes(b"kept by hand")
    Ledger(folder).append(told(1, 10))
    assert numbers(folder) == list(range(11))


def test_files_that_are_gone_are_missed(tmp_path):
    folder = filled(tmp_path / "ledger", 40, max_file_bytes=600)
    first, second, *_ = ledger_files(folder)
    second.unlink()
    with pytest.raises(LedgerError, match="expected"):
        verify(folder)
    first.unlink()
    with pytest.raises(LedgerError, match="expected 0"):
        verify(folder)
    for file in ledger_files(folder):
        file.unlink()
    with pytest.raises(LedgerError, match="there is no ledger"):
        verify(folder)
    with pytest.raises(LedgerError, match="its files are gone"):
        Ledger(folder).append(told(1))


@settings(max_examples=50)
@given(data=st.data())
def test_any_changed_byte_is_found(tmp_path_factory, data):
    folder = filled(tmp_path_factory.mktemp("one") / "ledger", 6)
    (file,) = ledger_files(folder)
    held = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(held) - 1))
    held[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(held)
    with pytest.raises(LedgerError):
        verify(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n": 1}, "n of an entry"),
        ({"kind": float("nan")}, "must be JSON"),
        ({"kind": b"x"}, "must be JSON"),
        ({"kind": "x" * 70_000}, "at most 65536"),
    ],
)
def test_what_is_no_entry_is_refused_and_leaves_nothing(tmp_path, fields, said):
    folder = filled(tmp_path / "ledger", 1)
    with pytest.raises(LedgerError, match=said):
        Ledger(folder).append([{"kind": "tensor", "bytes": 1}, fields])
    assert numbers(folder) == [0]


def test_a_ledger_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be written"):
        Ledger(tmp_path / "file")
    ledger = Ledger(tmp_path / "ledger")
    ledger.close()
    with pytest.raises(LedgerError, match="is closed"):
        ledger.append(told(1))
