"""What is written is this user's alone, and no link leads a read or a write elsewhere."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_user import OTHER, needs_root

from flower_split.errors import UnsafeFolderError
from flower_split.private_files import (
    check_private,
    keep_private,
    make_folder,
    make_private,
    open_lasting,
    opened,
    read_whole,
    write_new,
    write_whole,
)

REMEDY = "name another folder with some-key"


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def private(folder: Path) -> Path:
    made = make_folder(folder)
    make_private(made, remedy=REMEDY)
    return made


def test_folders_and_files_are_this_users_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o755)
    folder = tmp_path / "a" / "b"
    assert make_folder(folder) == folder
    make_private(folder / "c" / "d", below=folder / "c", remedy=REMEDY)
    write_new(folder / "new", b"1")
    write_whole(folder / "whole", b"2")
    os.close(open_lasting(folder / "lock"))
    made = [folder.parent, folder, folder / "c", folder / "c" / "d"]
    assert [mode(path) for path in made] == [0o700] * 4
    assert [mode(folder / name) for name in ("new", "whole", "lock")] == [0o600] * 3
    assert mode(tmp_path) == 0o755  # it was there


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    make_folder(tmp_path)
    make_private(tmp_path, remedy=REMEDY)
    assert mode(tmp_path) == 0o750


@pytest.mark.parametrize("bits", [0o770, 0o702, 0o777, 0o1777, 0o2775])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_folder_that_others_may_write_into_is_refused(
    tmp_path: Path, bits: int, level: int
) -> None:
    levels = [tmp_path, tmp_path / "run", tmp_path / "run" / "silo"]
    make_private(levels[2], below=levels[0], remedy=REMEDY)
    levels[level].chmod(bits)
    says = rf"{levels[level].name} .*mode {bits:04o}: nobody else may write.*chmod go-w.*some-key"
    with pytest.raises(UnsafeFolderError, match=says):
        make_private(levels[2], below=levels[0], remedy=REMEDY)
    with pytest.raises(UnsafeFolderError, match=says):
        check_private(levels[2], below=levels[0], remedy=REMEDY)


@needs_root
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = private(tmp_path / "own")
    os.chown(folder, OTHER, OTHER)
    with pytest.raises(UnsafeFolderError, match=rf"user id {OTHER} .*root \(user id 0\).*chown 0"):
        make_private(folder, remedy=REMEDY)


def test_what_is_to_be_done_can_be_pasted(tmp_path: Path) -> None:
    folder = private(tmp_path / "it's a folder")
    folder.chmod(0o777)
    with pytest.raises(UnsafeFolderError) as caught:
        check_private(folder, remedy=REMEDY)
    os.system(str(caught.value).split("`")[1])
    check_private(folder, remedy=REMEDY)


def test_the_folder_that_a_user_names_may_be_a_link(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "link").symlink_to(disk)
    assert make_folder(tmp_path / "link" / "cache") == disk / "cache"
    assert make_folder(tmp_path / "link") == disk


def test_a_link_to_a_disk_that_is_not_there_is_no_new_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for folder in (tmp_path / "link", tmp_path / "link" / "cache"):
        with pytest.raises(OSError, match=r"leads to .*disk.*not there"):
            make_folder(folder)
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize("level", [0, 1])
def test_no_link_below_it_is_followed(tmp_path: Path, level: int) -> None:
    root, elsewhere = private(tmp_path / "root"), private(tmp_path / "elsewhere")
    make_private(root / "run", remedy=REMEDY)
    link = [root / "run" / "silo", root / "other"][level]
    link.symlink_to(elsewhere)
    inner = [link, link / "silo"][level]
    for call in (make_private, check_private):
        with pytest.raises(OSError, match="symbolic link"):
            call(inner, below=root, remedy=REMEDY)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("where", ["there", "nowhere"])
def test_reading_and_locking_follow_no_link(tmp_path: Path, where: str) -> None:
    (tmp_path / "there").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / where)
    with pytest.raises(OSError, match="symbolic link"):
        read_whole(tmp_path / "link")
    with pytest.raises(OSError, match="symbolic link"):
        open_lasting(tmp_path / "link")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "link", b"x")
    assert (tmp_path / "there").read_text() == "secret"
    assert not (tmp_path / "nowhere").exists()


def test_writing_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    for name in ("file", "temporary"):
        (tmp_path / name).symlink_to(other)
    write_whole(tmp_path / "file", b"new", temporary="temporary")
    assert other.read_text() == "mine"
    assert read_whole(tmp_path / "file") == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"), opened(tmp_path / "pipe"):
        pass
    with pytest.raises(OSError, match="no regular file"):
        open_lasting(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        read_whole(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_was_there_stays_when_the_disk_is_full(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "file", b"before")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"after")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert read_whole(tmp_path / "file") == b"before"


def test_a_file_system_that_forces_no_folders_to_its_disk_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force = os.fsync

    def of_files_alone(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        force(handle)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    write_whole(tmp_path / "file", b"x")
    assert read_whole(tmp_path / "file") == b"x"


def test_what_another_library_wrote_is_taken_from_everyone_else(tmp_path: Path) -> None:
    (tmp_path / "made" / "inner").mkdir(parents=True, mode=0o755)
    outside = tmp_path / "outside"
    outside.write_text("x")
    outside.chmod(0o644)
    (tmp_path / "made" / "inner" / "file").write_text("x")
    (tmp_path / "made" / "link").symlink_to(outside)
    keep_private(tmp_path / "made")
    assert mode(tmp_path / "made") == mode(tmp_path / "made" / "inner") == 0o700
    assert mode(tmp_path / "made" / "inner" / "file") == 0o600
    assert mode(outside) == 0o644
