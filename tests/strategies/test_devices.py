"""A trunk over several devices: a run yields what it yields with one, to the bit."""

from typing import Any

import pytest
import torch
from split_run import failed_rounds, run_split
from steps import KEEPING, run_config
from tiny_checkpoint import save_tiny_model

RUNS: dict[str, dict[str, Any]] = {
    "federated": KEEPING,
    "shared": {**KEEPING, "trunk.adapters": "shared"},
    "frozen": {**KEEPING, "trunk.adapters": "frozen"},
    "with what the silo evaluates": {"num-server-rounds": 1},
    "with what is folded": {**KEEPING, "strategy.name": "flora"},
    "with corrections": {**KEEPING, "strategy.name": "scaffoldlora"},
    "with personal tensors": {**KEEPING, "strategy.name": "fedsalora"},
    "recomputed": {**KEEPING, "trunk.recompute": True, "num-server-rounds": 1},
    "under autocast": {"num-server-rounds": 1, "trunk.autocast": "bfloat16"},
    "of a model that is delivered": {"num-server-rounds": 1, "model.delivery": "server"},
    "of bfloat16 weights": {"num-server-rounds": 1, "trunk.dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


def left(folder: Any, changes: dict[str, Any], devices: str) -> dict[str, torch.Tensor]:
    """The whole adapter after a run, and the losses that it told."""
    silos = 1 if changes.get("trunk.adapters") == "shared" else 2  # whose steps come in any order
    values = run_config(
        folder, **{**changes, "trunk.devices": devices, "strategy.min-nodes": silos}
    )
    result, _ = run_split(values, silos=silos)
    assert not failed_rounds(result)
    losses = [r.metrics for r in result.history]
    found = {f"{n} {k}": torch.tensor(v) for n, m in enumerate(losses) for k, v in m.items()}
    return dict(result.adapter) | {k: v for k, v in found.items() if k.endswith("-loss")}


@pytest.mark.medium
def test_silos_share_batches_at_every_stage(folder: Any) -> None:
    batching = {"num-server-rounds": 1, "trunk.batching": True}
    one, two = (left(folder, batching, devices) for devices in ("", "cpu, cpu"))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.medium
@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_over_two_devices_equals_one_over_one(folder: Any, kind: str) -> None:
    one, two = (left(folder, RUNS[kind], devices) for devices in ("", "cpu, cpu"))
    assert one.keys() == two.keys()
    assert any("-loss" in name for name in one)
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
