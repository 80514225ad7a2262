"""The cache gives whole and right parts only, to several processes at once, and loses nothing."""

import errno
import fcntl
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from delivering import as_in_another_process, left
from hosting import eventually
from other_user import OTHER, needs_root

from flower_split.delivery import cache as cache_module
from flower_split.delivery import incoming as incoming_module
from flower_split.delivery.cache import PartCache
from flower_split.delivery.manifest import Item
from flower_split.errors import DeliveryError, WireError

DATA = bytes(range(256)) * 40
ITEM = Item(digest=hashlib.sha256(DATA).hexdigest(), size=len(DATA))


@pytest.fixture
def cache(tmp_path: Path) -> PartCache:
    return PartCache(tmp_path / "cache")


def fill(cache: PartCache, data: bytes = DATA, item: Item = ITEM) -> None:
    with cache.incoming(item) as part:
        assert part is not None
        part.add(data[part.received :])
        assert part.complete()


def test_a_part_is_there_once_it_is_complete(cache: PartCache) -> None:
    assert not cache.holds(ITEM)
    with cache.incoming(ITEM) as part:
        assert part is not None and part.received == 0
        part.add(DATA[:100])
        assert left(cache) == [f"{ITEM.digest}.part"]
        part.add(DATA[100:])
        assert not cache.path(ITEM.digest).exists()
        assert part.complete()
    assert left(cache) == [ITEM.digest]
    assert cache.holds(ITEM)
    assert cache.path(ITEM.digest).read_bytes() == DATA
    assert cache.read(ITEM.digest, 1 << 20) == DATA
    with cache.incoming(ITEM) as part:
        assert part is None
    assert left(cache) == [ITEM.digest]


def test_what_arrived_is_gone_on_from(cache: PartCache) -> None:
    for end in (1, 5000, 10000):
        with pytest.raises(KeyError), cache.incoming(ITEM) as part:
            assert part is not None
            part.add(DATA[part.received : end])
            raise KeyError
        assert left(cache) == [f"{ITEM.digest}.part"]
    with cache.incoming(ITEM) as part:
        assert part is not None and part.received == part.resumed == 10000
        part.add(DATA[10000:])
        assert part.complete()
    assert cache.holds(ITEM)


@pytest.mark.parametrize("remains", [b"\x00" * 50, DATA[:99] + b"x", DATA + b"more"])
def test_broken_remains_are_dropped_and_the_part_begun_anew(
    cache: PartCache, remains: bytes
) -> None:
    (cache.parts / f"{ITEM.digest}.part").write_bytes(remains)
    with cache.incoming(ITEM) as part:
        assert part is not None
        if part.received:
            part.add(DATA[part.received :])
            assert not part.complete()
        assert part.received == 0
        part.add(DATA)
        assert part.complete()
    assert cache.holds(ITEM)


@pytest.mark.parametrize("sent", [DATA[:-1], DATA[:-1] + b"x", b""])
def test_other_bytes_than_announced_are_not_kept(cache: PartCache, sent: bytes) -> None:
    with pytest.raises(WireError, match="other bytes"), cache.incoming(ITEM) as part:
        assert part is not None
        part.add(sent)
        part.complete()
    assert left(cache) == []


def test_more_bytes_than_announced_are_not_kept(cache: PartCache) -> None:
    with pytest.raises(WireError, match="more than"), cache.incoming(ITEM) as part:
        assert part is not None
        part.add(DATA)
        part.add(b"x")
    assert left(cache) == []


def flip(path: Path) -> None:
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [flip, lambda path: os.truncate(path, 5), lambda path: os.truncate(path, 0)],
    ids=["flipped", "shortened", "emptied"],
)
@pytest.mark.parametrize("known", [True, False])
def test_a_broken_part_is_found_also_when_it_was_right_before(
    cache: PartCache,
    damage: Callable[[Path], None],
    known: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill(cache)
    assert not known or cache.holds(ITEM)
    if not known:
        as_in_another_process(cache)
    damage(cache.path(ITEM.digest))
    assert not cache.holds(ITEM)
    assert "is broken and is fetched again" in caplog.text
    assert left(cache) == []
    fill(cache)
    assert cache.holds(ITEM)


def test_a_part_is_hashed_once_in_a_process(
    cache: PartCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache)
    as_in_another_process(cache)
    assert cache.holds(ITEM)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert cache.holds(ITEM)


def test_one_at_a_time_and_the_others_take_what_it_made(cache: PartCache) -> None:
    begun, go = threading.Event(), threading.Event()
    got: list[object] = []

    def first() -> None:
        with cache.incoming(ITEM) as part:
            assert part is not None
            begun.set()
            assert go.wait(20)
            part.add(DATA)
            part.complete()

    def second() -> None:
        with cache.incoming(ITEM) as part:
            got.append(part)

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert begun.wait(20)
    threads += [threading.Thread(target=second) for _ in range(3)]
    for thread in threads[1:]:
        thread.start()
    assert not got
    go.set()
    for thread in threads:
        thread.join(20)
    assert got == [None] * 3
    assert left(cache) == [ITEM.digest]


_HOLD = """
import sys, time
from pathlib import Path
from flower_split.delivery.cache import PartCache
from flower_split.delivery.manifest import Item

folder, digest, size = sys.argv[1:]
with PartCache(Path(folder)).incoming(Item(digest=digest, size=int(size))) as part:
    part.add(bytes(range(256)))
    print("holding", flush=True)
    time.sleep(600)
"""


def test_a_dead_process_holds_nobody_up_and_its_bytes_are_used(cache: PartCache) -> None:
    arguments = [sys.executable, "-c", _HOLD, str(cache.folder), ITEM.digest, str(ITEM.size)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "holding\n"
            got: list[int] = []

            def wait() -> None:
                with cache.incoming(ITEM) as part:
                    assert part is not None
                    got.append(part.received)
                    part.add(DATA[part.received :])
                    part.complete()

            waiting = threading.Thread(target=wait)
            waiting.start()
            waiting.join(0.5)
            assert not got
        finally:
            process.send_signal(signal.SIGKILL)
        waiting.join(20)
    assert got == [256]
    assert cache.holds(ITEM)


def test_a_frozen_process_is_not_waited_for(
    cache: PartCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "PATIENCE", 0.3)
    with (cache.parts / f"{ITEM.digest}.part").open("wb") as frozen:
        fcntl.flock(frozen, fcntl.LOCK_EX)
        fill(cache)
        assert "does not go on" in caplog.text
        assert cache.holds(ITEM)
        assert left(cache) == [ITEM.digest, f"{ITEM.digest}.part"]


@pytest.mark.parametrize("where", ["pwrite", "fsync"])
def test_a_full_disk_is_said_and_room_is_made(
    cache: PartCache, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    says = r"No space left on device.*cache-dir"
    with pytest.raises(DeliveryError, match=says), cache.incoming(ITEM) as part:
        assert part is not None
        part.add(DATA[:5000])
        monkeypatch.setattr(incoming_module.os, where, full)
        part.add(DATA[5000:])
        part.complete()
    monkeypatch.undo()
    assert left(cache) == []
    fill(cache)


def test_room_is_asked_for_before_anything_is_fetched(cache: PartCache) -> None:
    cache.check_room(0)
    with pytest.raises(DeliveryError, match=r"needs \d+ MiB more.*cache-dir"):
        cache.check_room(1 << 60)


def test_the_folder_is_this_users_alone(cache: PartCache) -> None:
    fill(cache)
    for path in (cache.folder, cache.parts, cache.path(ITEM.digest)):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def planted(cache: PartCache, tmp_path: Path, name: str) -> Path:
    """A link in the cache to a file of the same user's, which is to stay as it is."""
    target = tmp_path / "precious"
    target.write_bytes(DATA if name == ITEM.digest else b"precious")
    (cache.parts / name).symlink_to(target)
    return target


def test_a_link_in_the_place_of_a_part_is_replaced(
    cache: PartCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = planted(cache, tmp_path, ITEM.digest)
    assert cache.read(ITEM.digest, 1 << 20) is None  # although its bytes would be right
    assert "is broken and is fetched again" in caplog.text
    fill(cache)
    assert not cache.path(ITEM.digest).is_symlink()
    assert target.read_bytes() == DATA


def test_nothing_is_written_through_a_link(cache: PartCache, tmp_path: Path) -> None:
    target = planted(cache, tmp_path, f"{ITEM.digest}.part")
    with pytest.raises(DeliveryError, match=r"symbolic link.*remove it.*cache-dir"):
        fill(cache)
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["", "parts"])
def test_a_folder_that_others_may_write_into_is_refused(cache: PartCache, name: str) -> None:
    (cache.folder / name).chmod(0o770)
    with pytest.raises(DeliveryError, match=r"mode 0770: nobody else may write.*chmod.*cache-dir"):
        PartCache(cache.folder)


@needs_root
def test_a_folder_of_another_user_is_refused(cache: PartCache) -> None:
    os.chown(cache.folder, OTHER, OTHER)
    with pytest.raises(DeliveryError, match=rf"user id {OTHER} .*must belong to root.*cache-dir"):
        PartCache(cache.folder)


def test_the_folder_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    cache = PartCache(tmp_path / "cache")
    fill(cache)
    assert (tmp_path / "disk" / "parts" / ITEM.digest).read_bytes() == DATA
    cache.parts.rename(tmp_path / "elsewhere")
    cache.parts.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeliveryError, match="parts: it is a symbolic link"):
        PartCache(tmp_path / "cache")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeliveryError, match=r"file/cache.*cache-dir"):
        PartCache(tmp_path / "file" / "cache")


def test_threads_and_files_are_closed(cache: PartCache) -> None:
    before = threading.active_count()
    fill(cache)
    assert eventually(lambda: threading.active_count() == before)
