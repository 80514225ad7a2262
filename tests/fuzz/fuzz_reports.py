"""Harnesses of what a run and a silo leave for people: events, results and ledgers, changed."""

import atexit
import copy
import json
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from fuzz_choices import Choices

from flower_split.errors import DataError, LedgerError
from flower_split.ledger import Ledger, verify
from flower_split.ledger.book import ledger_files
from flower_split.reporting import RoundResult, RunResult, read_result, write_result
from flower_split.reporting.events import EVENTS, KINDS, read_events
from flower_split.reporting.events.kinds import header, line_of
from flower_split.reporting.live import RunView, fragments
from flower_split.reporting.live.metrics import RunMetrics

_FOLDER = Path(tempfile.mkdtemp(prefix="flower-split-fuzz-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
MARK = "<script>"
_HELD = {
    "round": 1,
    "rounds": 4,
    "next_round": 1,
    "silo": "north",
    "purpose": "evaluate",
    "counted": True,
    "metrics": {"eval-loss": 2.0},
    "counters": {"bytes-h1": 5, "tokens-per-second": 3.0},
    "seconds": 2.0,
    "silos": {"north": {"steps": 1, "tokens": 9}},
    "waiting": 1,
    "occupancy": 1.0,
    "left": ["checkpoints"],
    "best": False,
}
_EVENTS = [
    json.loads(line_of(kind, {f: _HELD.get(f, "x") for f in fields}, n=number, time=1.7e9 + number))
    for number, (kind, fields) in enumerate(KINDS.items())
]
_VALUES = (
    "\ud800",
    *(None, True, -1, 0, 2**70, 10**400, 1.5, 1e308, float("nan"), float("inf")),
    *("", MARK, "9" * 400, [], {}, {"north": {}}, {"eval-loss": 1e308}, [1]),
)
_ROUND = RoundResult(
    server_round=1,
    evaluate={"north": {"eval-loss": 2.0}},
    failures={"south": "why"},
    train_counters={"north": {"bytes-h1": 5}},
)
write_result(
    RunResult(rounds=[_ROUND], samples={1: MARK}, wire_bytes={"north": {"h1": 3}}),
    _FOLDER / "result.json",
)
_RESULT = (_FOLDER / "result.json").read_text()


def _change(node: object, choices: Choices) -> None:
    """Replace or remove something in a tree of JSON."""
    while isinstance(node, dict | list) and node:
        key = choices.of(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and choices.yes():
            node = node[key]
        elif choices.below(6) == 1:
            del node[key]
            return
        else:
            node[key] = copy.deepcopy(choices.of(_VALUES))
            return


def events(data: bytes) -> None:
    """A file of events: it is shown, whatever is in it, and nothing of it as it is."""
    choices = Choices(data)
    told = json.loads(json.dumps(_EVENTS))
    for _ in range(1 + choices.below(4)):
        _change(told, choices)
    lines = [json.dumps(event).encode() for event in told]
    if choices.below(4) == 1:
        lines.insert(choices.below(len(lines)), choices.rest())
    (_FOLDER / EVENTS).write_bytes(header() + b"\n".join(lines) + b"\n")
    view, metrics, found = RunView(), RunMetrics(), read_events(_FOLDER / EVENTS)
    view.take(found)
    metrics.take(found)
    shown = fragments(view, {}, now=1.8e9)
    assert MARK.encode() not in "".join(shown.values()).encode()
    assert metrics.text(view)


def result(data: bytes) -> None:
    """A result: it is read with fields of their kinds, or refused."""
    choices = Choices(data)
    told = json.loads(_RESULT)
    while choices.more:
        _change(told, choices)
    path = _FOLDER / "result.json"
    path.write_text(json.dumps(told))
    try:
        found = read_result(path)
    except DataError as error:
        assert len(str(error)) < 4000
        return
    assert all(isinstance(text, str) for text in found.samples.values())
    assert isinstance(found.silos, list)
    fragments(RunView(), found.samples, now=1.8e9)


def ledger(data: bytes) -> None:
    """A ledger whose bytes were changed: that is found, and appending goes on or breaks off."""
    choices = Choices(data)
    whole, folder = _whole_ledger(), _FOLDER / "changed"
    shutil.copytree(whole, folder)
    try:
        path = choices.of([*ledger_files(folder), folder / "head.json"])
        content = bytearray(path.read_bytes())
        while choices.more:
            at = choices.below(len(content) + 1)
            content[at : at + choices.below(6)] = choices.bytes(8)
        is_changed = bytes(content) != path.read_bytes()
        path.write_bytes(content)
        with suppress(LedgerError):
            assert verify(folder).hash == verify(whole).hash or is_changed
        book = Ledger(folder)
        with suppress(LedgerError):
            book.append([{"kind": "tensor", "bytes": 9}])
        book.close()
    finally:
        shutil.rmtree(folder)


@cache
def _whole_ledger() -> Path:
    book = Ledger(_FOLDER / "whole", max_file_bytes=200, max_files=3)
    for number in range(4):
        book.append([{"kind": "tensor", "bytes": number}])
    book.commit()
    book.close()
    return book.folder


SEEDS = {
    "events": lambda: [bytes([n, k, 1, 0, v]) for n in (0, 3) for k in (0, 10, 14) for v in (5, 9)],
    "result": lambda: [bytes([k, 0, 2, v]) for k in range(0, 14, 3) for v in (0, 5, 13)],
    "ledger": lambda: [bytes([n, 0, 3, 1, 2, 7, 7]) for n in range(4)],
}
HARNESSES = {"events": events, "result": result, "ledger": ledger}
