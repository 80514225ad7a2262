"""A process without a home keeps what it has to keep somewhere, and says where."""

import logging
import os
import tempfile
from pathlib import Path

import pytest
from other_user import OTHER, as_other_user, folder_of_other, needs_root

from flower_split.user_folders import expanded, give_flower_a_home, user_folder


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_folder("XDG_CACHE_HOME", ".cache", key="k") == Path("/somewhere/flower-split")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        found = user_folder("XDG_CACHE_HOME", ".cache", key="k")
        assert found == tmp_path / ".cache/flower-split"
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with caplog.at_level(logging.WARNING, logger="flower_split"):
        found = [user_folder("XDG_CACHE_HOME", ".cache", key="some-key") for _ in range(2)]
    assert found == [Path(tempfile.gettempdir()) / f"flower-split-{os.geteuid()}"] * 2
    assert caplog.text.count("cannot be written to") == 1
    assert str(found[0]) in caplog.text and "some-key" in caplog.text


@pytest.mark.parametrize("planted", ["a link", "a file"])
def test_what_others_put_there_is_not_used(
    planted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    usual = tmp_path / f"flower-split-{os.geteuid()}"
    usual.symlink_to(tmp_path / "mine" if planted == "a link" else tmp_path / "file")
    found = user_folder("XDG_CACHE_HOME", ".cache", key=f"key of {planted}")
    assert found != usual and found.parent == tmp_path
    assert found.stat().st_mode & 0o777 == 0o700 and list(found.iterdir()) == []


@needs_root
@pytest.mark.medium
def test_the_home_that_containers_give_to_a_user_without_a_name() -> None:
    with folder_of_other() as folder:
        said = as_other_user(
            """
            from flower_split import user_folders
            print(user_folders.user_folder("XDG_STATE_HOME", ".local/state", key="state-dir"))
            """,
            HOME="/",
            TMPDIR=str(folder / "tmp"),
        )
        assert said == f"{folder}/tmp/flower-split-{OTHER}\n"


@needs_root
@pytest.mark.medium
def test_a_user_without_a_name_and_a_home() -> None:
    with folder_of_other() as folder:
        said = as_other_user(
            """
            import logging, sys
            from flower_split import user_folders
            logging.basicConfig(stream=sys.stdout)
            for _ in range(2):
                print(user_folders.user_folder("XDG_STATE_HOME", ".local/state", key="state-dir"))
            for text in ("~", "~/x", "~nobody-of-this-name/x"):
                try:
                    user_folders.expanded(text)
                except OSError as error:
                    print(error.strerror)
            """,
            TMPDIR=str(folder / "tmp"),
        )
        kept = folder / "tmp" / f"flower-split-{OTHER}"
        assert said.count(f"{kept}\n") == 2
        assert kept.stat().st_uid == OTHER and kept.stat().st_mode & 0o777 == 0o700
    assert said.count("has no home folder") == 1
    assert said.count("home folder of that user is not known") == 3


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "a\0b"])
def test_what_is_no_path_is_an_error_of_the_system(text: str) -> None:
    with pytest.raises(OSError, match=r"not known|null character"):
        expanded(text)


def test_flower_has_a_home_where_the_user_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its own modules ask for one as they are imported."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("FLWR_HOME", "/named")
    give_flower_a_home()
    assert os.environ["FLWR_HOME"] == "/named"
    monkeypatch.setenv("FLWR_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    give_flower_a_home()
    assert not os.environ["FLWR_HOME"]
    monkeypatch.setattr(Path, "home", homeless)
    give_flower_a_home()
    found = Path(os.environ["FLWR_HOME"])
    assert found.parent.stat().st_uid == os.geteuid()
    assert found.parent.stat().st_mode & 0o777 == 0o700
