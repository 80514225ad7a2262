"""What stands in the way of a local SuperLink is told before anything is started."""

import sys
from pathlib import Path

import pytest

from flower_split.apps.flower.local_superlink import LocalSuperLink, LocalSuperLinkError
from flower_split.apps.simulate import simulate

QUICKSTART = Path(__file__).parents[3] / "examples/quickstart"


@pytest.mark.parametrize("folder", ["a folder", "it's", "$HOME"])
def test_an_interpreter_that_ray_cannot_start(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", f"/{folder}/bin/python")
    superlink = LocalSuperLink()
    assert superlink.home.is_dir()
    with pytest.raises(LocalSuperLinkError, match=r"Ray.*shell.*virtual environment"):
        superlink.__enter__()
    assert not superlink.home.exists()


def test_a_temporary_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(LocalSuperLinkError, match=r"no temporary folder.*TMPDIR"):
        LocalSuperLink()


def test_exceptions_from_a_proxy_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "example.org")
    superlink = LocalSuperLink()
    try:
        found = superlink.environment
        assert found["no_proxy"] == found["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    finally:
        superlink.close()


def test_silos_are_simulated_on_a_cluster_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    superlink = LocalSuperLink()
    try:
        assert "RAY_ADDRESS" not in superlink.environment
    finally:
        superlink.close()


@pytest.mark.parametrize("name", ["file/below", "x" * 300])
def test_an_output_folder_that_cannot_be_made(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalSuperLinkError, match=r"output folder .* cannot be made"):
        simulate(QUICKSTART, output_dir=tmp_path / name)
