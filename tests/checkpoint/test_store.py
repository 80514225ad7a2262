import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_disk import small_disk

from flower_split.checkpoint import Checkpoint, CheckpointStore, find_checkpoint, read_checkpoint
from flower_split.checkpoint.archive import write_checkpoint
from flower_split.checkpoint.manifest import digest, parse, render
from flower_split.errors import DamagedStateError, StateError


def checkpoint(server_round, **fields):
    arrays = {
        "w": np.full((2, 3), server_round, np.float32),
        "wide": np.float64([1 / 3, np.nan, -0.0]),
        "empty": np.zeros((0, 4), np.int64),
        "one": np.array(7, np.uint32),
    }
    state = {"note": f"round {server_round}", "third": 1 / 3, "none": None, "text": "ä\ud800"}
    return Checkpoint(server_round=server_round, arrays=arrays, state=state, **fields)


def rounds(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


@pytest.fixture
def store(tmp_path):
    with CheckpointStore(tmp_path / "run") as opened:
        yield opened


def test_what_is_saved_comes_back_to_the_bit(store):
    assert store.save(checkpoint(3))
    found = store.load_last()
    wanted = checkpoint(3)
    assert found.server_round == 3
    assert found.state == wanted.state
    assert found.arrays.keys() == wanted.arrays.keys()
    for name, array in wanted.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.tobytes()


def test_the_last_ones_and_the_best_are_kept(store):
    for number in range(6):
        store.save(checkpoint(number, best_round=min(number, 1)))
    assert rounds(store.folder) == ["round-00001", "round-00004", "round-00005"]
    assert store.load_last().server_round == 5
    assert find_checkpoint(store.folder, best=True).server_round == 1
    assert find_checkpoint(store.folder, server_round=4).server_round == 4
    with pytest.raises(StateError, match="no checkpoint of round 2; it has: 1, 4, 5"):
        find_checkpoint(store.folder, server_round=2)


def test_a_round_that_was_only_trained_is_kept_until_it_is_complete(store):
    for number in range(3):
        store.save(checkpoint(number))
    store.save(checkpoint(3, complete=False))
    assert rounds(store.folder) == ["round-00002", "round-00003-trained"]
    assert store.load_last().place == (3, False)
    assert find_checkpoint(store.folder, server_round=3).place == (3, False)
    store.save(checkpoint(3))
    assert rounds(store.folder) == ["round-00002", "round-00003"]
    assert store.load_last().place == (3, True)


def test_without_a_best_one_there_is_none(store):
    assert store.load_last() is None
    store.save(checkpoint(1))
    with pytest.raises(StateError, match="kept as the best"):
        find_checkpoint(store.folder, best=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints of two rounds, and every byte of the later one's files."""
    folder = tmp_path_factory.mktemp("two")
    with CheckpointStore(folder) as store:
        store.save(checkpoint(1))
        store.save(checkpoint(2))
    files = {path: path.read_bytes() for path in (folder / "round-00002").iterdir()}
    return folder, files


@pytest.mark.medium
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_damage_is_noticed_and_the_one_before_may_be_used(two, caplog, data):
    folder, files = two
    path = data.draw(st.sampled_from(sorted(files)), "file")
    whole = files[path]
    position = data.draw(st.integers(0, len(whole) - 1), "position")
    if data.draw(st.booleans(), "cut off"):
        damaged = whole[:position]
    else:
        flipped = whole[position] ^ data.draw(st.integers(1, 255), "bits")
        damaged = whole[:position] + bytes([flipped]) + whole[position + 1 :]
    path.write_bytes(damaged)
    caplog.clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert find_checkpoint(folder, fallback=True).server_round == 1
    finally:
        path.write_bytes(whole)
    (warning,) = caplog.records
    assert str(path) in warning.getMessage()
    assert find_checkpoint(folder).server_round == 2


@pytest.mark.parametrize("name", ["arrays.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_is_damage(two, name, caplog):
    folder, files = two
    path = folder / "round-00002" / name
    path.unlink()
    try:
        assert find_checkpoint(folder, fallback=True).server_round == 1
    finally:
        path.write_bytes(files[path])
    assert f"{path} is missing" in caplog.text


def test_a_round_is_not_taken_for_another(store):
    store.save(checkpoint(1))
    shutil.copytree(store.folder / "round-00001", store.folder / "round-00009")
    assert store.load_last(fallback=True).server_round == 1


def test_another_format_is_not_damage(store, monkeypatch):
    monkeypatch.setattr("flower_split.checkpoint.manifest.FORMAT", 2)
    store.save(checkpoint(1))
    monkeypatch.undo()
    with pytest.raises(StateError, match="another version of flower_split") as caught:
        store.load_last()
    assert not isinstance(caught.value, DamagedStateError)


@pytest.mark.parametrize(
    ("state", "changes"),
    [
        (b"1", {}),
        (b"[]", {}),
        (b"{}", {"files": None}),
        (b"{}", {"files": {}}),
        (b"{}", {"files": {"arrays.safetensors": 3, "state.json": 3}}),
        (b"{}", {"round": None}),
        (b"{}", {"round": "1"}),
        (b"{}", {"best_round": "x"}),
    ],
)
def test_what_nobody_wrote_is_damage_even_where_its_digests_fit(store, state, changes):
    store.save(checkpoint(1))
    folder = store.folder / "round-00001"
    whole = parse((folder / "manifest.json").read_bytes(), "it")
    (folder / "state.json").write_bytes(state)
    whole["files"]["state.json"] = {"bytes": len(state), "sha256": digest(state)}
    (folder / "manifest.json").write_bytes(render({**whole, **changes}))
    with pytest.raises(DamagedStateError):
        read_checkpoint(folder)


def test_a_damaged_later_round_is_replaced_and_does_not_push_out_good_ones(store):
    for number in (1, 2, 3):
        store.save(checkpoint(number))
    (store.folder / "round-00003" / "state.json").write_text("{}")
    assert store.load_last(fallback=True).server_round == 2
    store.save(checkpoint(3))
    assert rounds(store.folder) == ["round-00002", "round-00003"]
    assert store.load_last().server_round == 3
    (store.folder / "round-00003").rename(store.folder / "round-00007")
    store.save(checkpoint(3))
    assert rounds(store.folder) == ["round-00002", "round-00003"]


def test_row_27_a_disk_that_is_really_full(tmp_path, caplog):
    big = Checkpoint(server_round=2, arrays={"w": np.zeros(100_000, np.float32)})
    with small_disk(tmp_path / "disk") as disk, CheckpointStore(disk / "run") as store:
        assert store.save(checkpoint(1))
        assert not store.save(big)
        assert "No space left on device" in caplog.text
        assert rounds(store.folder) == ["round-00001"]
        assert store.load_last().server_round == 1
        assert store.save(checkpoint(2))


def test_a_read_only_folder_is_refused_at_the_start(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    tmp_path.chmod(0o755)
    code = (
        "import sys; from pathlib import Path\n"
        "from flower_split.checkpoint.lock import FolderLock\n"
        "from flower_split.errors import StateError\n"
        "import os\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "for folder in (Path(sys.argv[1]), Path(sys.argv[1]) / 'run'):\n"
        "    try: FolderLock(folder).__enter__()\n"
        "    except StateError as error: print(error)\n"
    )
    for parent in folder.parents[:-2]:
        if not os.stat(parent).st_mode & 0o005:
            parent.chmod(0o755)
    said = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(said) == 2
    assert f"checkpoints cannot be written to {folder}: Permission denied" in said[0]
    with pytest.raises(StateError, match="cannot be written to /proc/nowhere"):
        CheckpointStore(Path("/proc/nowhere")).__enter__()


def test_a_folder_that_others_may_write_into_is_refused(store):
    store.save(checkpoint(1))
    store.__exit__()
    for path in (store.folder, *store.folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    store.folder.chmod(0o775)
    with pytest.raises(StateError, match=r"nobody else may write.*choose another output-dir"):
        CheckpointStore(store.folder).__enter__()


def test_no_link_leads_a_run_elsewhere(store, tmp_path):
    store.save(checkpoint(1))
    store.__exit__()
    precious = tmp_path / "precious"
    (precious / "photos").mkdir(parents=True)
    (tmp_path / "checkpoints").symlink_to(precious)
    with pytest.raises(StateError, match="symbolic link"):
        CheckpointStore(tmp_path / "checkpoints").__enter__()
    assert [path.name for path in precious.rglob("*")] == ["photos"]
    file = store.folder / "round-00001" / "state.json"
    file.rename(tmp_path / "state.json")
    file.symlink_to(tmp_path / "state.json")
    with pytest.raises(StateError, match="symbolic link"):
        read_checkpoint(store.folder / "round-00001")
    (store.folder / ".lock").unlink()
    (store.folder / ".lock").symlink_to(tmp_path / "state.json")
    with pytest.raises(StateError, match="symbolic link"):
        CheckpointStore(store.folder).__enter__()


def test_two_runs_on_one_folder_at_once_are_refused(store):
    with pytest.raises(StateError, match="another run writes checkpoints"):
        CheckpointStore(store.folder).__enter__()


def test_the_lock_dies_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from flower_split.checkpoint.lock import FolderLock\n"
        "FolderLock(Path(sys.argv[1])).__enter__(); print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateError, match="another run"):
            CheckpointStore(tmp_path).__enter__()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with CheckpointStore(tmp_path):
        pass


def test_what_a_killed_run_left_half_written_is_swept(store, tmp_path):
    store.save(checkpoint(1))
    store.__exit__()
    for name in (".writing-round-00002-abc", ".deleting-round-00000"):
        (store.folder / name / "round-00002").mkdir(parents=True)
    with CheckpointStore(store.folder) as again:
        assert rounds(again.folder) == ["round-00001"]


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_whole_checkpoints_only(tmp_path):
    code = (
        "import sys, itertools; from pathlib import Path; import numpy as np\n"
        "from flower_split.checkpoint import Checkpoint, CheckpointStore\n"
        "with CheckpointStore(Path(sys.argv[1])) as store:\n"
        "    for n in itertools.count():\n"
        "        arrays = {'w': np.full(50_000, n, np.float64)}\n"
        "        store.save(Checkpoint(server_round=n, arrays=arrays, state={'n': n}))\n"
        "        print(n, flush=True)\n"
    )
    for seed in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        saved = -1
        while saved < 3 + 2 * seed:
            saved = int(writer.stdout.readline())
        writer.kill()
        writer.wait()
        writer.stdout.close()
        found = find_checkpoint(tmp_path)
        assert found.server_round >= saved
        assert (found.arrays["w"] == found.state["n"]).all()
        with CheckpointStore(tmp_path) as store:
            store.set_aside()


def test_an_earlier_runs_checkpoints_are_set_aside_loudly(store, caplog):
    store.set_aside()
    assert not caplog.records
    for number in (1, 2):
        store.save(checkpoint(number))
    store.set_aside()
    assert store.load_last() is None
    assert find_checkpoint(store.folder / "previous").server_round == 2
    assert "2 checkpoints of an earlier run" in caplog.text
    store.save(checkpoint(5))
    store.set_aside()
    assert rounds(store.folder / "previous") == ["round-00005"]


def test_what_belongs_to_a_run_goes_aside_with_it(store):
    store.save(checkpoint(1))
    with CheckpointStore(store.folder / "alone") as other:
        other.save(checkpoint(2))
    store.set_aside()
    assert find_checkpoint(store.folder / "previous" / "alone").server_round == 2
    assert rounds(store.folder) == ["previous"]


def test_what_has_no_place_in_one_is_our_own_bug(tmp_path):
    for array in (np.array(["text"]), np.array([None]), np.array([1j])):
        with pytest.raises(ValueError, match="cannot hold"):
            write_checkpoint(Checkpoint(server_round=1, arrays={"a": array}), tmp_path)
    with pytest.raises(ValueError):
        write_checkpoint(Checkpoint(server_round=1, state={"x": float("nan")}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_its_owner_may_read_it(store):
    store.save(checkpoint(1))
    folder = store.folder / "round-00001"
    assert folder.stat().st_mode & 0o077 == 0
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["format"] == 1
    assert read_checkpoint(folder).server_round == 1
