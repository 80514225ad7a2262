"""The figures of loading quantized segments, of a small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_scripts import FOLDER
from tiny_models import tiny_model

pytest.importorskip("bitsandbytes")

SCRIPT = FOLDER / "quantized_loading.py"


@pytest.mark.exhaustive
def test_a_trunk_that_is_loaded_hardly_takes_more_than_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)  # which keeps bitsandbytes out
    model = tiny_model(layers=6, hidden_size=384, intermediate_size=1024, vocab_size=512)
    model.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "--bottom=1", "--top=1", "--one", "trunk", "nf4"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["after"] <= found["peak"] < found["after"] + 12  # its weights: 27 MiB
