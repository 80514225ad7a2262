"""A silo whose user has neither a name nor a home, as in a container, trains like any other."""

from pathlib import Path

import pytest
from other_user import OTHER, as_other_user, folder_of_other, needs_root
from tiny_checkpoint import save_texts, save_tiny_model

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.slow
@needs_root
def test_a_delivered_model_is_trained_and_its_optimizer_resumed() -> None:
    with folder_of_other() as folder:
        kept = folder / "tmp" / f"flower-split-{OTHER}"
        save_tiny_model(folder / "model")
        save_texts(folder / "texts.jsonl")
        for path in (folder / "model", *(folder / "model").iterdir(), folder / "texts.jsonl"):
            path.chmod(0o755)
        said = as_other_user(
            """
            import logging, os, sys
            sys.path.insert(0, os.environ["SUPPORT"])
            from flwr.serverapp.strategy import FedAvg
            from in_process_grid import InProcessGrid
            from flower_split.apps.client_app import app
            from flower_split.config.run_config import read_run_config
            from flower_split.strategies import SplitStrategy

            logging.basicConfig(stream=sys.stdout)
            folder = os.environ["FOLDER"]
            values = {
                "model.name": f"{folder}/model",
                "model.delivery": "server",
                "data.path": f"{folder}/texts.jsonl",
                "data.eval-fraction": 0.25,
                "train.batch-size": 3,
                "train.max-length": 16,
                "lora.r": 2,
                "num-server-rounds": 2,
                "strategy.min-nodes": 2,
            }
            grid = InProcessGrid(app, 2, run_config=values)
            strategy = SplitStrategy(read_run_config(values), FedAvg())
            result = strategy.start(grid, timeout=60.0)
            for record in result.of("train", 2):
                told = record.statistics
                print("resumed", told["state-resumed"], record.failure)
            """,
            FOLDER=str(folder),
            SUPPORT=str(SUPPORT),
            TMPDIR=str(folder / "tmp"),
        )
        owned = [path.lstat() for path in (kept, *kept.rglob("*"))]
    assert said.count("resumed 1") == 2
    assert {one.st_uid for one in owned} == {OTHER}
    assert f"kept in {kept}" in said
