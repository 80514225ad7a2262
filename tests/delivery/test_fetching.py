"""A pack comes over a real server to the bit: once, resumed where it broke off, or not at all."""

import itertools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from affine_backend import AffineBackend
from delivering import (
    MIB,
    TICKETS,
    CuttingProxy,
    DirectStream,
    as_in_another_process,
    left,
    save_model_of_several_mib,
)
from hosting import hosting, nothing_left
from safetensors.torch import load_file

from flower_split.delivery import cache as cache_module
from flower_split.delivery import fetching
from flower_split.delivery.cache import PartCache
from flower_split.delivery.fetching import Fetched, fetch_pack
from flower_split.delivery.manifest import Item, Manifest
from flower_split.delivery.pack import Pack, Part
from flower_split.errors import DeliveryError, TrunkBusyError, TrunkUnavailableError, WireError
from flower_split.server.grpc.server import TrunkServer
from flower_split.transport.grpc.delivery import GrpcDelivery


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_of_several_mib(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pack(model: Path) -> Iterator[Pack]:
    with Pack(model, bottom_layers=1, top_layers=1) as pack:
        yield pack


@pytest.fixture
def server(pack: Pack) -> Iterator[TrunkServer]:
    with hosting(AffineBackend(), pack=pack) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> PartCache:
    return PartCache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "growing_pauses", lambda: itertools.repeat(0.01))


def fetch(address: str, pack_digest: str, cache: PartCache, **options: int) -> Fetched:
    return fetch_pack(
        pack_digest, TICKETS, lambda ticket: GrpcDelivery(address, ticket), cache, **options
    )


def assert_complete(fetched: Fetched, pack: Pack, model: Path) -> None:
    for digest, item in pack.manifest.items.items():
        assert (fetched.folder / ".." / ".." / "parts" / digest).stat().st_size == item.size
    stored = load_file(model / "model.safetensors")
    index = {n for path in fetched.folder.glob("*.safetensors") for n in load_file(path)}
    assert index and index < stored.keys()


def test_it_comes_once_and_then_from_the_disk(
    server: TrunkServer, pack: Pack, cache: PartCache, model: Path
) -> None:
    first = fetch(server.address, pack.digest, cache)
    assert_complete(first, pack, model)
    assert first.num_bytes == pack.manifest.total + len(pack.manifest.to_bytes())
    as_in_another_process(cache)

    def none(_: object) -> GrpcDelivery:
        raise AssertionError("a stream was opened")

    again = fetch_pack(pack.digest, TICKETS, none, cache)
    assert (again.folder, again.num_bytes) == (first.folder, 0)
    assert left(cache) == sorted([pack.digest, *pack.manifest.items])


def test_only_what_is_missing_or_broken_is_fetched(
    server: TrunkServer, pack: Pack, cache: PartCache, model: Path
) -> None:
    fetch(server.address, pack.digest, cache)
    broken, missing = list(pack.manifest.items)[:2]
    with cache.path(broken).open("r+b") as file:
        file.write(b"x")
    cache.path(missing).unlink()
    again = fetch(server.address, pack.digest, cache)
    assert again.num_bytes == sum(pack.manifest.items[d].size for d in (broken, missing))
    with (
        Pack(model, bottom_layers=2, top_layers=1) as deeper,
        hosting(AffineBackend(), pack=deeper) as other,
    ):
        more = fetch(other.address, deeper.digest, cache)
        new = deeper.manifest.items.keys() - pack.manifest.items.keys()
        assert len(new) == 1
        assert more.num_bytes < 2 * MIB < deeper.manifest.total


@pytest.mark.parametrize("seed", range(4))
def test_streams_that_break_anywhere_are_gone_on_from(
    server: TrunkServer, pack: Pack, cache: PartCache, seed: int, model: Path
) -> None:
    chance = random.Random(seed)
    # A stream that is cut off within its first piece brings nothing, and few may do so.
    cuts = [chance.randrange(MIB + 100_000, 3 * MIB) for _ in range(3)]
    with CuttingProxy(server.port, cuts) as proxy:
        fetched = fetch(proxy.address, pack.digest, cache)
    assert_complete(fetched, pack, model)
    whole = pack.manifest.total + len(pack.manifest.to_bytes())
    assert fetched.num_bytes == whole  # what arrived whole was not fetched twice


def test_a_session_that_failed_is_gone_on_from_by_the_next(
    server: TrunkServer, pack: Pack, cache: PartCache, model: Path
) -> None:
    with (
        CuttingProxy(server.port, [MIB + 100_000, *[0] * 20]) as proxy,
        pytest.raises(TrunkUnavailableError),
    ):
        fetch(proxy.address, pack.digest, cache)
    parts = [path for path in cache.parts.iterdir() if path.suffix == ".part"]
    assert [path.stat().st_size for path in parts] == [MIB] or not parts
    before = sum(path.stat().st_size for path in cache.parts.iterdir())
    fetched = fetch(server.address, pack.digest, cache)
    assert_complete(fetched, pack, model)
    assert fetched.num_bytes == pack.manifest.total + len(pack.manifest.to_bytes()) - before


def test_a_server_that_is_gone_is_given_up(pack: Pack, cache: PartCache) -> None:
    with hosting(AffineBackend(), pack=pack) as server:
        address = server.address
    opened = []

    def counting(ticket: object) -> GrpcDelivery:
        opened.append(ticket)
        return GrpcDelivery(address)

    with nothing_left(), pytest.raises(TrunkUnavailableError):
        fetch_pack(pack.digest, TICKETS, counting, cache)
    assert len(opened) == fetching.FUTILE_STREAMS
    assert left(cache) == []


def test_a_busy_server_is_asked_again(pack: Pack, cache: PartCache, model: Path) -> None:
    attempts = []

    class Busy(DirectStream):
        def read(self, digest: str, offset: int) -> Iterator[bytes]:
            attempts.append(digest)
            if len(attempts) < 3:
                raise TrunkBusyError("full")
            return super().read(digest, offset)

    tickets = TICKETS[:1]  # a refusal for want of room leaves the ticket good
    with pytest.raises(TrunkBusyError):
        fetch_pack(pack.digest, tickets, lambda _: Busy(pack), cache)
    fetched = fetch_pack(pack.digest, tickets, lambda _: Busy(pack), cache, patience=60.0)
    assert_complete(fetched, pack, model)


def test_no_more_streams_than_tickets(pack: Pack, cache: PartCache) -> None:
    opened: list[object] = []

    def breaking(ticket: object) -> DirectStream:
        opened.append(ticket)
        left_over = iter(range(1))

        def on_piece() -> None:
            if next(left_over, None) is None:
                raise TrunkUnavailableError("broke")

        return DirectStream(pack, on_piece, piece=1 << 16)

    with pytest.raises(TrunkUnavailableError, match="broke"):
        fetch_pack(pack.digest, TICKETS, breaking, cache)
    assert opened == list(TICKETS)


_FETCH = """
import sys
from pathlib import Path
from flower_split.delivery.cache import PartCache
from flower_split.delivery.fetching import fetch_pack
from flower_split.transport.grpc.delivery import GrpcDelivery
from flower_split.transport.messages import Ticket

address, digest, folder = sys.argv[1:]
tickets = [Ticket(run_id=1, node_id=1, server_round=1, token="t")]
open_stream = lambda ticket: GrpcDelivery(address)
print(fetch_pack(digest, tickets, open_stream, PartCache(Path(folder))).num_bytes)
"""


@pytest.mark.exhaustive
def test_two_processes_share_one_download(
    server: TrunkServer, pack: Pack, cache: PartCache
) -> None:
    arguments = [sys.executable, "-c", _FETCH, server.address, pack.digest, str(cache.folder)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    fetched = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    manifest = len(pack.manifest.to_bytes())
    assert pack.manifest.total + manifest <= sum(fetched) <= pack.manifest.total + 2 * manifest
    assert left(cache) == sorted([pack.digest, *pack.manifest.items])


class LyingPack:
    """A pack in which the part that `lie` is told of is another one."""

    def __init__(self, pack: Pack, digest: str, part: Part) -> None:
        self._pack, self._lie, self._part = pack, digest, part
        self.digest = pack.digest

    def find(self, digest: str) -> Part | None:
        return self._part if digest == self._lie else self._pack.find(digest)


class EndlessPart(Part):
    def __init__(self) -> None:
        super().__init__([])
        self.size = 1 << 62

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


def largest(pack: Pack) -> Item:
    return max(pack.manifest.weights, key=lambda item: item.size)


def whole_of(pack: Pack, digest: str) -> bytes:
    part = pack.find(digest)
    assert part is not None
    return part.read(0, part.size)


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lambda whole: Part([whole[:-1] + bytes([whole[-1] ^ 1])]), "other bytes"),
        (lambda whole: Part([whole[:-1]]), "other bytes"),
        (lambda whole: Part([whole[: 2 * MIB]]), "other bytes"),
        (lambda whole: Part([b""]), "other bytes"),
        (lambda whole: Part([whole, b"x"]), "more than"),
        (lambda whole: EndlessPart(), "more than"),
    ],
    ids=["wrong", "fewer", "far fewer", "none", "more", "endless"],
)
def test_a_server_that_lies_about_a_part_leaves_nothing(
    lie: object, says: str, pack: Pack, cache: PartCache
) -> None:
    item = largest(pack)
    part = lie(whole_of(pack, item.digest))  # type: ignore[operator]
    lying = LyingPack(pack, item.digest, part)
    with hosting(AffineBackend(), pack=lying) as server, pytest.raises(WireError, match=says):
        fetch(server.address, pack.digest, cache)
    kept = left(cache)
    assert not [name for name in kept if name.startswith(item.digest)]
    assert all(cache.verified(name) for name in kept)
    assert not (cache.folder / "models").exists()


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lambda manifest: Part([manifest.to_bytes() + b" "]), "not the one of the invitation"),
        (lambda manifest: Part([b"{}"]), "not the one of the invitation"),
        (lambda manifest: Part([b""]), "not the one of the invitation"),
        (lambda manifest: EndlessPart(), "above 1048576 bytes"),
    ],
    ids=["other", "empty object", "nothing", "endless"],
)
def test_a_server_that_lies_about_the_manifest_leaves_nothing(
    lie: object, says: str, pack: Pack, cache: PartCache
) -> None:
    lying = LyingPack(pack, pack.digest, lie(pack.manifest))  # type: ignore[operator]
    with hosting(AffineBackend(), pack=lying) as server, pytest.raises(WireError, match=says):
        fetch(server.address, pack.digest, cache)
    assert left(cache) == []


class MadeUpPack:
    """Whatever parts under the digests that they really have."""

    def __init__(self, files: dict[str, bytes], weights: list[bytes]) -> None:
        import hashlib

        self._parts: dict[str, Part] = {}

        def item(content: bytes) -> Item:
            digest = hashlib.sha256(content).hexdigest()
            self._parts[digest] = Part([content])
            return Item(digest=digest, size=len(content))

        manifest = Manifest(
            files={name: item(content) for name, content in files.items()},
            weights=tuple(item(content) for content in weights),
        )
        self.digest = manifest.digest
        self._parts[self.digest] = Part([manifest.to_bytes()])

    def find(self, digest: str) -> Part | None:
        return self._parts.get(digest)


def test_weights_that_are_no_safetensors_or_come_twice_make_no_model(
    pack: Pack, cache: PartCache
) -> None:
    weights = whole_of(pack, pack.manifest.weights[-1].digest)
    # A second file with the same tensors and other bytes.
    length = int.from_bytes(weights[:8], "little")
    twice = (length + 8).to_bytes(8, "little") + weights[8 : 8 + length] + b" " * 8
    twice += weights[8 + length :]
    for bad, says in (([b"\x80\x04pickle"], "no safetensors"), ([weights, twice], "twice")):
        made_up = MadeUpPack({"config.json": b"{}"}, bad)
        with hosting(AffineBackend(), pack=made_up) as server, pytest.raises(WireError, match=says):
            fetch(server.address, made_up.digest, cache)
    assert not (cache.folder / "models").exists()


def test_names_of_files_are_never_paths(cache: PartCache, tmp_path: Path) -> None:
    made_up = MadeUpPack({"config.json": b"{}", "../../evil": b"x"}, [b"w"])
    with hosting(AffineBackend(), pack=made_up) as server, pytest.raises(WireError):
        fetch(server.address, made_up.digest, cache)
    assert not list(tmp_path.rglob("evil"))
    assert left(cache) == []


def test_a_pack_above_the_silos_limit_is_not_fetched(
    server: TrunkServer, pack: Pack, cache: PartCache
) -> None:
    with pytest.raises(DeliveryError, match=r"takes at most 0\.0; raise max-download-gib"):
        fetch(server.address, pack.digest, cache, limit=MIB)
    assert left(cache) == [pack.digest]


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    server: TrunkServer, pack: Pack, cache: PartCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 70 * MIB

    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DeliveryError, match=r"needs \d MiB more"):
        fetch(server.address, pack.digest, cache)
    assert left(cache) == [pack.digest]


def test_a_models_folder_that_was_changed_is_made_anew(pack: Pack, cache: PartCache) -> None:
    def folder() -> Path:
        return fetch_pack(pack.digest, TICKETS, lambda _: DirectStream(pack), cache).folder

    first = folder()
    names = sorted(os.listdir(first))
    (first / "tokenizer.json").write_text("planted")
    assert sorted(os.listdir(folder())) == names
    (first / "config.json").unlink()
    (first / "config.json").write_text('{"model_type": "gpt2"}')
    assert (folder() / "config.json").is_symlink()
    (first / "model.safetensors.index.json").write_text("{}")
    assert (folder() / "model.safetensors.index.json").read_text() != "{}"
    # One that is right to the last link, and lies where others may change it.
    elsewhere = cache.folder / "elsewhere"
    first.rename(elsewhere)
    first.symlink_to(elsewhere)
    assert not folder().is_symlink()
    assert os.listdir(cache.folder / "models") == [pack.digest]


def test_many_at_once_make_one_folder(pack: Pack, cache: PartCache) -> None:
    found: list[Fetched] = []

    def run() -> None:
        streams = lambda _: DirectStream(pack)  # noqa: E731
        found.append(fetch_pack(pack.digest, TICKETS, streams, cache))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({fetched.folder for fetched in found}) == 1 and len(found) == 4
    assert os.listdir(cache.folder / "models") == [pack.digest]


def test_a_large_download_says_how_far_it_is(
    pack: Pack, cache: PartCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetching, "_NOTICE_BYTES", 0)
    monkeypatch.setattr(fetching, "_NOTICE_SECONDS", 0.0)
    with caplog.at_level("INFO"):
        fetch_pack(pack.digest, TICKETS, lambda _: DirectStream(pack), cache)
    mib = pack.manifest.total >> 20
    assert f"fetching {mib} MiB of the model from the server" in caplog.text
    assert f"fetched {mib} of {mib} MiB of the model (100 %)" in caplog.text
    assert not any(ticket.token in caplog.text for ticket in TICKETS)
