"""A family without an entry is proved once, and its verdict is kept."""

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_models import Case
from transformers import PreTrainedConfig

from flower_split.errors import ModelError, UnsupportedFamilyError
from flower_split.segments import Family, Trunk, family_of, proving, split_model

HELIUM = Case(
    name="helium",
    model_type="helium",
    values={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of verdicts, empty; and a process that knows none."""
    monkeypatch.setenv("FLOWER_SPLIT_CACHE", str(tmp_path))
    monkeypatch.setattr(proving, "_VERDICTS", {})
    return tmp_path / "families"


class Proofs:
    """Takes the place of the process that proves."""

    def __init__(self, family: Family | None, reason: str = "") -> None:
        self.verdict = proving.Verdict(family=family, reason=reason)
        self.count = 0

    def __call__(self, config: PreTrainedConfig) -> proving.Verdict:
        self.count += 1
        return self.verdict


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Proofs:
    """Proofs that come to the verdict that helium is exact."""
    proofs = Proofs(Family(model_type="helium", after=("norm",)))
    monkeypatch.setattr(proving, "_prove", proofs)
    return proofs


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "_VERDICTS", {})


@pytest.mark.medium
def test_an_exact_family_is_proved_and_cut(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    model = HELIUM.model()
    assert isinstance(split_model(model, 1, 1)[1], Trunk)
    assert len(list(folder.glob("helium-*.json"))) == 1

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the verdict was kept")

    _forget(monkeypatch)
    monkeypatch.setattr(subprocess, "run", fail)
    assert family_of(model.config).after == ("norm",)


def test_a_verdict_is_kept_for_other_sizes_and_not_for_other_settings(
    exact: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8}
    for changes, count in (
        ({}, 1),
        ({**larger, "vocab_size": 500}, 1),
        ({"hidden_act": "gelu"}, 2),
        ({"tie_word_embeddings": True}, 3),
    ):
        _forget(monkeypatch)
        family_of(HELIUM.config(**{"vocab_size": 200, **changes}))
        assert exact.count == count, changes


def test_a_refusal_says_what_differs_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs = Proofs(None, "left padding: the loss differs by 0.1")
    monkeypatch.setattr(proving, "_prove", proofs)
    for _ in range(2):
        _forget(monkeypatch)
        with pytest.raises(UnsupportedFamilyError, match=r"'helium'.*left padding: the loss"):
            family_of(HELIUM.config())
    assert proofs.count == 1


@pytest.mark.parametrize("content", ["", "{}", '{"family": {"after": 1}, "reason": ""}', "[1]"])
def test_a_broken_verdict_is_proved_again(
    exact: Proofs, monkeypatch: pytest.MonkeyPatch, folder: Path, content: str
) -> None:
    family_of(HELIUM.config())
    (path,) = folder.glob("*.json")
    path.write_text(content, encoding="utf-8")
    _forget(monkeypatch)
    family_of(HELIUM.config())
    assert exact.count == 2
    assert json.loads(path.read_text(encoding="utf-8"))["family"]["model_type"] == "helium"


def test_without_a_folder_a_verdict_is_the_process_own(
    exact: Proofs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("FLOWER_SPLIT_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        family_of(HELIUM.config())
    assert exact.count == 1


def test_a_verdict_that_others_may_write_is_not_believed(
    exact: Proofs, monkeypatch: pytest.MonkeyPatch, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family_of(HELIUM.config())
    (path,) = folder.glob("*.json")
    for open_to_all in (folder, folder.parent):
        _forget(monkeypatch)
        open_to_all.chmod(0o777)
        family_of(HELIUM.config())
        open_to_all.chmod(0o700)
    assert exact.count == 3
    assert "nobody else may write into it" in caplog.text
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    _forget(monkeypatch)
    family_of(HELIUM.config())
    assert exact.count == 4 and not path.is_symlink()


def test_several_at_once_prove_once(exact: Proofs) -> None:
    threads = [threading.Thread(target=family_of, args=(HELIUM.config(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert exact.count == 1


def test_a_proof_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def late(*args: Any, **kwargs: Any) -> Any:
        raise subprocess.TimeoutExpired("python", 1.0)

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(UnsupportedFamilyError, match=r"could not be found out \(it took more"):
        family_of(HELIUM.config())
    assert not list(folder.glob("*.json"))


def test_what_the_configuration_rules_out_is_not_proved(exact: Proofs) -> None:
    with pytest.raises(ModelError, match="output_hidden_states"):
        family_of(HELIUM.config(output_hidden_states=True))
    assert exact.count == 0
