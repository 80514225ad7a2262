"""Loading a segment takes about the memory of the segment, not of the model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc"),
]

LAYERS = 24
MIB = 2**20

# Forks for every job, so that each has a peak of its own and the imports are paid once; prints for
# each the own share and by how much loading it raised the peak, in bytes. A load of a tiny model
# brings in the pages of the code first.
_LOAD = """
import json, os, sys
import torch
from flower_split.segments import load_client_model, load_trunk

torch.set_num_threads(1)
LOAD = {"client": load_client_model, "trunk": load_trunk}

def peak():
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

def size(module):
    tensors = {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())

tiny, jobs = json.loads(sys.argv[1])
for which in LOAD:
    LOAD[which](tiny, bottom_layers=1, top_layers=1)
for which, folder, dtype in jobs:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # makes torch's pool anew; loading threads would race to do it
        LOAD[which](tiny, bottom_layers=1, top_layers=1)
        before = peak()
        module = LOAD[which](folder, bottom_layers=2, top_layers=2, dtype=dtype)
        print(json.dumps([size(module), peak() - before]), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"{which} {dtype}: {status}")
"""


class Measured(NamedTuple):
    """Bytes of the whole model, of the loaded segment, and by which loading it raised the peak."""

    whole: int
    share: int
    peak: int


def save_llama(folder: Path, layers: int, hidden: int, **save: Any) -> int:
    """A constant model in `folder`; returns its size in bytes."""
    with torch.device("meta"):
        model = tiny_model(
            layers=layers,
            vocab_size=2048,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_key_value_heads=4,
        )
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.25)
    model.save_pretrained(folder, **save)
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Measured]:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_llama(folder / "tiny", 3, 16)
    wholes = {
        "single": save_llama(folder / "single", LAYERS, 512),
        "sharded": save_llama(folder / "sharded", LAYERS, 384, max_shard_size="50MB"),
    }
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 2
    jobs = [
        ("client", "single", "float32"),
        ("client", "sharded", "float32"),
        ("trunk", "single", "float32"),
        ("client", "single", "bfloat16"),
    ]
    argument = [str(folder / "tiny"), [(w, str(folder / at), dtype) for w, at, dtype in jobs]]
    run = subprocess.run(
        [sys.executable, "-c", _LOAD, json.dumps(argument)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    shutil.rmtree(folder)  # pytest keeps its folders for three runs
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return {
        (f"{which} {at}", dtype): Measured(wholes[at], *line)
        for (which, at, dtype), line in zip(jobs, lines, strict=True)
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_client_takes_its_own_share(layout: str, measured: dict[tuple[str, str], Measured]) -> None:
    whole, share, peak = measured[f"client {layout}", "float32"]
    assert 0.15 * whole < share < 0.25 * whole
    assert share / 2 < peak < 1.2 * share + 20 * MIB
    assert peak < 0.4 * whole


def test_trunk_takes_its_own_share(measured: dict[tuple[str, str], Measured]) -> None:
    whole, share, peak = measured["trunk single", "float32"]
    assert 0.75 * whole < share < 0.85 * whole
    assert share / 2 < peak < 1.2 * share + 20 * MIB
    assert peak < whole


def test_half_precision_takes_half(measured: dict[tuple[str, str], Measured]) -> None:
    whole, share, peak = measured["client single", "bfloat16"]
    assert share < 0.125 * whole
    assert share / 2 < peak < 1.2 * share + 20 * MIB
