"""Sources: folders, package folders and hub models, the latter with a hub in the test's hands."""

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import safe_open
from tiny_models import CASE_BY_NAME

from flower_split.errors import WeightsError
from flower_split.segments import load_trunk, resolve_source
from flower_split.segments.loading import source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "http://hub.invalid"))


class FakeHub:
    """A hub with one model: what is asked of it is noted, and copied to a snapshot's folder."""

    def __init__(self, repository: str, files: Path, cache: Path) -> None:
        self.repository = repository
        self.files = files
        self.snapshot = cache / "snapshots" / COMMIT
        self.asked: list[tuple[str, str | None]] = []

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: Any, ignore_patterns: Any
    ) -> str:
        if repo_id != self.repository:
            raise RepositoryNotFoundError("404 Client Error.\nmore", response=response(404))
        self.asked.append(("snapshot", revision))
        for file in self.files.iterdir():
            small = any(file.match(pattern) for pattern in allow_patterns)
            if file.is_file() and small and not any(file.match(p) for p in ("sub/*",)):
                self._copy(file.name)
        assert ignore_patterns == ["*/*"]
        return str(self.snapshot)

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str) -> str:
        assert (repo_id, revision) == (self.repository, COMMIT)
        self.asked.append((filename, revision))
        if not (self.files / filename).is_file():
            note = self.snapshot.parents[1] / ".no_exist" / COMMIT / filename  # as the library does
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
            raise RemoteEntryNotFoundError("404", response=response(404))
        return str(self._copy(filename))

    def _copy(self, filename: str) -> Path:
        self.snapshot.mkdir(parents=True, exist_ok=True)
        target = self.snapshot / filename
        target.write_bytes((self.files / filename).read_bytes())
        return target


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    files = tmp_path / "files"
    CASE_BY_NAME["llama"].model().save_pretrained(files, max_shard_size="20KB")
    fake = FakeHub("someone/tiny", files, tmp_path / "cache")
    monkeypatch.setattr(source, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(source, "hf_hub_download", fake.hf_hub_download)
    return fake


def test_local_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    for given in (tmp_path, str(tmp_path)):
        found = resolve_source(given)
        assert (found.name, found.folder, found.repository) == (str(tmp_path), tmp_path, "")
        assert found.find("config.json") == tmp_path / "config.json"
        assert found.find("other.json") is None


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_source("~/model").folder == tmp_path / "model"


def test_package_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_package_with_a_model"
    (package / "models" / "base").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = resolve_source("a_package_with_a_model:models/base")
        assert found.folder == package / "models" / "base"
        with pytest.raises(WeightsError, match="no folder 'models/big' on disk"):
            resolve_source("a_package_with_a_model:models/big")
        with pytest.raises(WeightsError, match="leads out of its package"):
            resolve_source("a_package_with_a_model:models/../..")
    finally:
        sys.modules.pop("a_package_with_a_model", None)
    with pytest.raises(WeightsError, match="names no installed package"):
        resolve_source("no_such_package:base")


@pytest.mark.parametrize("name", ["", "/no/such/folder", "./model", "a/b/c", "~/no-such", "a b"])
def test_no_such_folder(name: str) -> None:
    with pytest.raises(WeightsError, match="there is no folder"):
        resolve_source(name)


def test_path_object_is_never_a_hub_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no folder"):
        resolve_source(tmp_path / "missing")
    with pytest.raises(WeightsError, match="there is no folder"):
        resolve_source(Path("gpt2"))


def test_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(WeightsError, match="is a file, expected a model's folder"):
        resolve_source(file)


def test_hub_model_is_read_at_one_commit_and_only_where_needed(hub: FakeHub) -> None:
    trunk = load_trunk("someone/tiny", bottom_layers=1, top_layers=2, revision="v1")
    assert trunk.config.name_or_path == "someone/tiny"
    assert hub.asked[:2] == [("snapshot", "v1"), ("model.safetensors", COMMIT)]
    shards = {name for name, _ in hub.asked[2:]}
    needed = set()
    for path in hub.files.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if any(".layers.1." in name for name in file.keys()):  # noqa: SIM118
                needed.add(path.name)
    assert shards == needed
    assert 0 < len(shards) < len(list(hub.files.glob("*.safetensors")))


def test_hub_model_that_is_downloaded_is_not_asked_for_again(hub: FakeHub) -> None:
    load_trunk("someone/tiny", bottom_layers=1, top_layers=2)
    hub.asked.clear()
    load_trunk("someone/tiny", bottom_layers=1, top_layers=2)
    assert hub.asked == [("snapshot", None)]


def test_hub_model_in_one_file_and_in_shards(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    other = CASE_BY_NAME["llama"].model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.save_pretrained(hub.files)
    trunk = load_trunk("someone/tiny", bottom_layers=1, top_layers=2)
    assert [name for name, _ in hub.asked[1:]] == ["model.safetensors"]
    weight = trunk.model.model.layers[1].mlp.up_proj.weight
    assert torch.equal(weight, other.model.layers[1].mlp.up_proj.weight)
    assert "its weights are taken from model.safetensors" in caplog.text


def test_sharded_hub_model_is_loaded_without_a_network(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_trunk("someone/tiny", bottom_layers=1, top_layers=2)

    def offline(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(source, "hf_hub_download", offline)
    (hub.snapshot.parents[1] / ".no_exist" / COMMIT / "model.safetensors").unlink()
    load_trunk("someone/tiny", bottom_layers=1, top_layers=2)


def test_hub_adapter_is_called_one(hub: FakeHub) -> None:
    (hub.files / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
    with pytest.raises(WeightsError, match="someone/tiny has a PEFT adapter"):
        load_trunk("someone/tiny", bottom_layers=1, top_layers=1)
    (hub.files / "config.json").unlink()
    (hub.snapshot / "config.json").unlink()
    with pytest.raises(WeightsError, match="someone/tiny is a PEFT adapter of 'someone/base'"):
        load_trunk("someone/tiny", bottom_layers=1, top_layers=1)


def test_hub_model_without_safetensors(hub: FakeHub) -> None:
    for file in hub.files.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(WeightsError, match=r"someone/tiny has no weights.*pytorch_model\.bin"):
        load_trunk("someone/tiny", bottom_layers=1, top_layers=1)


def test_unknown_hub_model(hub: FakeHub) -> None:
    with pytest.raises(WeightsError) as caught:
        resolve_source("someone/other")
    text = str(caught.value)
    assert "'someone/other' is no local folder" in text
    assert "RepositoryNotFoundError: 404 Client Error." in text and "more" not in text
    assert isinstance(caught.value.__cause__, RepositoryNotFoundError)


@pytest.mark.parametrize(
    "failure",
    [
        LocalEntryNotFoundError("not in the cache"),
        HfHubHTTPError("403", response=response(403)),
        httpx.ConnectError("no route"),
        OSError("disk full"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_hub_that_fails(hub: FakeHub, failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise failure

    monkeypatch.setattr(source, "hf_hub_download", fail)
    with pytest.raises(WeightsError, match="could not be fetched from the hub") as caught:
        load_trunk("someone/tiny", bottom_layers=1, top_layers=1)
    assert ".safetensors" in str(caught.value)
    assert "hf download" in str(caught.value)
    assert caught.value.__cause__ is failure
    monkeypatch.setattr(source, "snapshot_download", fail)
    with pytest.raises(WeightsError, match="revision 'v2' could not be fetched"):
        resolve_source("someone/tiny", "v2")


def test_offline_hub_that_has_nothing_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="could not be fetched from the hub"):
        resolve_source("someone/never-cached")
