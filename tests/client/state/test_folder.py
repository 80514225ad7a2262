import os
import time
from pathlib import Path

import pytest

from flower_split.client.node_config import NodeConfig
from flower_split.client.state.folder import StateFolder, remove_files

FILE = f"00000001-{'a' * 64}.safetensors"
DAY = 24 * 3600


def old(path, days):
    moment = time.time() - days * DAY
    os.utime(path, (moment, moment))


def test_the_node_config_names_the_folder(tmp_path, state_home, monkeypatch):
    assert StateFolder.of_node(NodeConfig(state_dir=str(tmp_path))).root == tmp_path
    assert StateFolder.of_node(NodeConfig()).root == state_home / "flower-split"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        found = StateFolder.of_node(NodeConfig(state_days=3))
        assert (found.root, found.days) == (Path.home() / ".local/state/flower-split", 3)


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc", "..", ".", "", "a/b", "a\\b", "a\0b", "ü", "x" * 300, "-rf"]
)
def test_every_name_is_one_folder_below_the_root(tmp_path, name):
    folders = StateFolder(root=tmp_path)
    for own in (folders.of(name, "0"), folders.of("7", name)):
        assert own.parent.parent == tmp_path / "optimizer"
        assert own.resolve() == own
        own.mkdir(parents=True)


def test_names_that_look_alike_are_folders_apart(tmp_path):
    folders = StateFolder(root=tmp_path)
    names = ["a/b", "a_b", "a.b", "x" * 41, "x" * 42, "A", "a"]
    assert len({str(folders.of("7", name)).casefold() for name in names}) == len(names)


def test_leftovers_are_swept_by_age_and_nothing_else_is(tmp_path):
    folders = StateFolder(root=tmp_path, days=14)
    own, dead, young, foreign = (folders.of(run, "0") for run in ("1", "2", "3", "4"))
    for folder in (own, dead, young, foreign):
        folder.mkdir(parents=True)
        (folder / FILE).touch()
        (folder / "incoming.tmp").touch()
    (foreign / "thesis.txt").touch()
    (tmp_path / "thesis.txt").touch()
    (tmp_path / "optimizer" / "thesis.txt").touch()
    for path in [*tmp_path.rglob("*")]:
        if young not in (path, path.parent):
            old(path, 15)
    folders.sweep(sparing=own)
    assert [path.exists() for path in (own / FILE, dead, young / FILE)] == [True, False, True]
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "optimizer" / "thesis.txt").exists()


def test_sweeping_goes_through_no_link(tmp_path):
    folders = StateFolder(root=tmp_path / "state")
    for level, link in enumerate(("adapter", "optimizer/7", "optimizer/8/0")):
        target = tmp_path / "outside" / str(level)
        file = target / Path(*["x"] * (2 - level)) / FILE
        file.parent.mkdir(parents=True)
        file.touch()
        place = folders.root / link
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
        for path in (file, *list(file.parents)[: 3 - level]):
            old(path, 99)
        os.utime(place, (0, 0), follow_symlinks=False)
    folders.sweep(sparing=folders.of("1", "0"))
    assert len(list((tmp_path / "outside").rglob(FILE))) == 3


def test_the_folder_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    root = StateFolder.of_node(NodeConfig(state_dir=str(tmp_path / "link"))).root
    assert root == tmp_path / "disk"
    (tmp_path / "disk").rmdir()
    root = StateFolder.of_node(NodeConfig(state_dir=str(tmp_path / "link"))).root
    assert root == tmp_path / "link"  # which whoever saves there is told to lead nowhere


def test_removing_what_is_not_there_is_no_error(tmp_path):
    remove_files(tmp_path / "nothing")
    StateFolder(root=tmp_path / "nothing").sweep(sparing=tmp_path)
