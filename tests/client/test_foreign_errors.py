"""What the system says of a path is told by an error of flower_split's own, and so to the user."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from other_user import as_other_user, folder_of_other, needs_root

from flower_split.apps.export import export
from flower_split.client.node_config import NodeConfig
from flower_split.client.state.folder import StateFolder
from flower_split.data.sources import load_examples
from flower_split.delivery.cache import PartCache
from flower_split.errors import ConfigError, FlowerSplitError
from flower_split.segments.loading.skeleton import read_config
from flower_split.segments.loading.source import resolve_source
from flower_split.tls import ClientTls

READERS: dict[str, Callable[[Path], object]] = {
    "data": lambda path: load_examples(str(path)),
    "model": lambda path: read_config(resolve_source(str(path))),
    "certificate": lambda path: ClientTls.from_files(ca=str(path)),
    "export": lambda path: export(path, Path("/nowhere/out")),
}


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("name", ["file/below.txt", "x" * 300 + ".txt", "nothing.txt", "garbage"])
def test_what_cannot_be_read_is_named(tmp_path: Path, what: str, name: str) -> None:
    (tmp_path / "file").write_text("x")
    garbage = tmp_path / "garbage"
    if what in ("model", "export"):
        garbage.mkdir()
        for one in ("config.json", "adapter_config.json"):
            (garbage / one).write_bytes(b"\xff\xfe{")
    else:
        garbage.write_bytes(b"\xff\xfe{")
    with pytest.raises(FlowerSplitError) as caught:
        READERS[what](tmp_path / name)
    assert str(tmp_path) in str(caught.value)


def test_a_null_character_is_named() -> None:
    for key in ("data-path", "state-dir", "cache-dir", "trunk-ca"):
        with pytest.raises(ConfigError, match=f"null character in {key}"):
            NodeConfig.read({key: "/a\0b"})
    for read in (lambda: load_examples("/a\0b"), lambda: resolve_source("/a\0b")):
        with pytest.raises(FlowerSplitError, match="null character"):
            read()


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FlowerSplitError, match=r"Not a directory|File name too long"):
        PartCache(tmp_path / name)
    StateFolder.of_node(NodeConfig(state_dir=str(tmp_path / name))).sweep(sparing=tmp_path)


@pytest.mark.slow
@needs_root
def test_what_the_user_may_not_read_or_write_is_named() -> None:
    """Read as another user, whom modes concern as they do not concern root."""
    with folder_of_other() as folder:
        (folder / "closed").mkdir(mode=0o700)
        (folder / "closed" / "data.txt").write_text("secret")
        (folder / "unreadable.txt").write_text("secret")
        (folder / "unreadable.txt").chmod(0o600)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (folder / "model" / "config.json").chmod(0o600)
        said = as_other_user(
            """
            import os
            from pathlib import Path
            from flower_split.apps.export import export
            from flower_split.client.node_config import NodeConfig
            from flower_split.client.state.folder import StateFolder
            from flower_split.config.sections import SplitConfig
            from flower_split.data.sources import load_examples
            from flower_split.delivery.cache import PartCache
            from flower_split.errors import FlowerSplitError
            from flower_split.segments.loading.skeleton import read_config
            from flower_split.segments.loading.source import resolve_source
            from flower_split.server.snapshots import SnapshotStore
            from flower_split.checkpoint.lock import FolderLock
            from flower_split.tls import ClientTls

            root = Path(os.environ["FOLDER"])
            closed, file = root / "closed", root / "unreadable.txt"
            for name, call in {
                "data file": lambda: load_examples(str(file)),
                "data folder": lambda: load_examples(str(closed / "data.txt")),
                "model": lambda: read_config(resolve_source(str(root / "model"))),
                "model folder": lambda: resolve_source(str(closed)),
                "model in a folder": lambda: resolve_source(str(closed / "model")),
                "certificate": lambda: ClientTls.from_files(ca=str(file)),
                "certificate folder": lambda: ClientTls.from_files(ca=str(closed / "ca.crt")),
                "cache": lambda: PartCache(root / "cache"),
                "cache in a folder": lambda: PartCache(closed / "cache"),
                "snapshots": lambda: SnapshotStore(root / "snapshots"),
                "checkpoints": lambda: FolderLock(root / "run" / "checkpoints").__enter__(),
                "export from": lambda: export(closed, Path("/tmp/out")),
                "export from a folder": lambda: export(closed / "run", Path("/tmp/out")),
            }.items():
                try:
                    call()
                    print(name, "| passed")
                except FlowerSplitError as error:
                    print(name, "|", type(error).__name__, "|", error)
            StateFolder.of_node(NodeConfig(state_dir=str(closed / "x"))).sweep(sparing=root)
            """,
            FOLDER=str(folder),
        ).splitlines()
    assert len(said) == 13
    for line in said:
        told = line.partition(" | ")[2]
        assert str(folder) in told, line
        assert "ermission denied" in told or "may not be read" in told, line
        assert "secret" not in told
