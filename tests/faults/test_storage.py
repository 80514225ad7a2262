"""Rows 27 to 29: disks that are full or fail, files that were damaged, kills amid saving."""

import errno
import json
import logging
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_writer import outcomes
from pairs import LORA
from tiny_models import tiny_model

from flower_split.adapters import initial_state, resolve_lora, save_adapter
from flower_split.checkpoint import Checkpoint, CheckpointStore, find_checkpoint
from flower_split.errors import DamagedStateError, StateError

SIZE = 30_000
REGION = 4096


def checkpoint(number: int) -> Checkpoint:
    arrays = {"w": np.arange(number, number + SIZE // 8, dtype=np.float64)}
    return Checkpoint(server_round=number, arrays=arrays, state={"n": number, "text": "x" * 9000})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(tmp_path / "run") as opened:
        yield opened


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "mkdir", "fsync", "rename"])
def test_row_27_a_disk_that_is_full_failing_or_read_only(
    store: CheckpointStore,
    call: str,
    error: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At every single call of a save: the earlier checkpoint is whole, and a warning says why."""
    store.save(checkpoint(1))
    real, failed = getattr(os, call), 0
    for after in range(20):
        calls: list[object] = []

        def failing(
            *arguments: object,
            calls: list[object] = calls,
            after: int = after,
            **options: object,
        ) -> object:
            calls.append(arguments)
            if len(calls) > after:
                raise OSError(error, os.strerror(error))
            return real(*arguments, **options)

        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            written = store.save(checkpoint(2))
        assert find_checkpoint(store.folder, server_round=1).state["n"] == 1  # type: ignore[union-attr]
        last = store.load_last()
        assert last is not None
        if not written:
            failed += 1
            assert f"round-00002 could not be written: {os.strerror(error)}" in caplog.text
        else:
            assert last.server_round == 2
        names = {path.name for path in store.folder.iterdir()}
        assert names <= {".lock", "round-00001", "round-00002"} | hidden(names)
        if len(calls) <= after:
            break
    else:
        raise AssertionError(f"more than 20 calls of os.{call}")
    assert failed or call == "open"  # Python's own open() asks the system without it


def test_a_first_checkpoint_that_is_not_written_is_not_called_one_of_several(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "mkdir", full)
    assert not store.save(checkpoint(1))
    assert "there is no earlier one to resume it from" in caplog.text


def hidden(names: set[str]) -> set[str]:
    """Of leftovers, what the next run sweeps."""
    return {name for name in names if name.startswith((".writing-", ".deleting-"))}


def places(path: Path) -> list[int]:
    """A byte of every region of a file, its first and its last."""
    size = path.stat().st_size
    return sorted({0, size - 1, *range(17, size, REGION)})


@pytest.mark.parametrize("name", ["arrays.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "cut off"])
def test_row_28_a_checkpoint_that_is_damaged_in_any_region(
    store: CheckpointStore, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused by its digest; the one before it takes its place by the flag only, and loudly."""
    for number in (1, 2):
        store.save(checkpoint(number))
    path = store.folder / "round-00002" / name
    whole = path.read_bytes()
    for place in places(path):
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        path.write_bytes(damaged if how == "flipped" else whole[:place])
        with pytest.raises(DamagedStateError, match=f"{name} is damaged.*checkpoint.fallback"):
            store.load_last()
        with pytest.raises(DamagedStateError):
            find_checkpoint(store.folder, server_round=2)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = store.load_last(fallback=True)
        assert found is not None and found.server_round == 1
        (warning,) = caplog.records
        assert str(path) in warning.getMessage()
    path.write_bytes(whole)
    assert store.load_last().server_round == 2  # type: ignore[union-attr]


def test_row_28_when_all_are_damaged_nothing_takes_their_place(store: CheckpointStore) -> None:
    for number in (1, 2):
        store.save(checkpoint(number))
        (store.folder / f"round-0000{number}" / "state.json").write_text("{}")
    for fallback in (False, True):
        with pytest.raises(StateError):
            store.load_last(fallback=fallback)


@pytest.mark.slow
def test_row_29_a_process_that_is_killed_while_it_saves() -> None:
    """At any call to the file system: what is read is the old state or the new one, or nothing."""
    found = outcomes()
    assert found.keys() == {"checkpoint", "adapter", "session state"}
    for kind, read in found.items():
        assert read[0] == "old" and read[-1] == "new", kind
        changes = [one for one, next_one in pairwise(read) if one != next_one]
        refused = 1 if "refused" in read else 0
        assert len(changes) == 1 + refused, (kind, read)  # and no way back
        assert len(read) > 4, kind
    assert "refused" not in found["session state"]


def test_row_29_what_takes_a_name_is_on_the_disk_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter: every file is forced to the disk, then renamed, then its folder is forced."""
    model, told = tiny_model(), list[tuple[str, str]]()
    plan, state = resolve_lora(model, LORA), initial_state(model, LORA, seed=1)
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        told.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def noted_replace(source: Path, target: Path) -> None:
        told.append(("replace", target.name))
        replace(source, target)

    folder = tmp_path / "adapter"
    for number in (1.0, 2.0):
        tensors = {name: torch.full_like(tensor, number) for name, tensor in state.items()}
        told.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", noted_fsync)
            patch.setattr(os, "replace", noted_replace)
            save_adapter(tensors, plan, folder, base_model="model")
    tensors_name, config = "adapter_model.safetensors", "adapter_config.json"
    forced = {name for what, name in told[:2] if what == "fsync"}
    assert forced == {tensors_name, config}
    assert told[2:] == [("replace", tensors_name), ("replace", config), ("fsync", "adapter")]
    assert json.loads((folder / config).read_bytes())["r"] == LORA.r
