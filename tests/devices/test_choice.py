"""Devices by name."""

import pytest
import torch

from flower_split.devices import choice, resolve_device
from flower_split.errors import ConfigError


def test_automatic_takes_the_first_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of what holds for all tests
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choice.automatic() == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda", 0)


def test_a_device_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"trunk\.device is 'cuda:2'.* finds 2 CUDA devices"):
        resolve_device("cuda:2", key="trunk.device")


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"finds 0 CUDA devices.*'auto'"):
        resolve_device("cuda")
    with pytest.raises(ConfigError, match="no Apple GPU"):
        resolve_device("mps")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cpu:0", "CUDA", "meta"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must be auto, cpu, mps, cuda or cuda:N"):
        resolve_device(name)
