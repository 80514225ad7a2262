"""A family without an entry trains through the ready-made app, its model local or delivered."""

import math
from pathlib import Path

import pytest
from in_process_grid import InProcessGrid
from tiny_checkpoint import WORDS, save_tiny_run, tiny_run_config
from tiny_models import Case

from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_run import serve_run

# One of attention, one with convolutions and a cache of its own for them.
CASES = (
    Case(
        name="olmo",
        model_type="olmo",
        values={
            "vocab_size": 4 + len(WORDS),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "clip_qkv": 0.5,
        },
    ),
    Case(
        name="lfm2",
        model_type="lfm2",
        values={
            "vocab_size": 4 + len(WORDS),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        },
    ),
)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("case", "delivery"), [(CASES[1], "server"), (CASES[0], "local")], ids=("lfm2", "olmo")
)
def test_it_trains(tmp_path: Path, case: Case, delivery: str) -> None:
    config = tiny_run_config(save_tiny_run(tmp_path), **{"num-server-rounds": 1})
    case.model().save_pretrained(tmp_path / "model")
    config["model.delivery"] = delivery
    result = serve_run(InProcessGrid(client_app, 3, run_config=config), config)
    before = result.evaluate_metrics_clientapp[0]["eval-loss"]
    after = result.evaluate_metrics_clientapp[1]["eval-loss"]
    assert isinstance(before, float) and isinstance(after, float)
    assert math.isfinite(before) and after < before
