"""A real deployment whose ServerApp is killed: the run submitted again goes on where it was."""

import random
import time

import pytest
from federation import COMPLETED, Federation, Node, wait_for, write_app
from run_outcome import outcome

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

ROUNDS = 2


@pytest.mark.exhaustive
def test_a_killed_server_app_is_resumed_with_what_the_silos_kept(tiny, tmp_path):
    """Other node ids, another run id, the same silos: to the bit, moments of the optimizer too."""
    config = {
        **tiny.config,
        "num-server-rounds": ROUNDS,
        "strategy.name": "fedadam",
        "strategy.min-nodes": 2,
        "train.local-steps": 40,
    }
    app = write_app(tmp_path / "app", config)
    nodes = [Node(config={"partition-id": i, "num-partitions": 2}) for i in range(2)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with Federation(tmp_path / "federation", nodes) as federation:
        own = set(federation.listening())
        ended = federation.run(app, output_dir=str(whole))
        assert ended.status == COMPLETED, f"{ended}\n{federation.logs()}"

        federation.submit(app, output_dir=str(cut), resume=True)
        saved = cut / "checkpoints" / "round-00001"
        wait_for(saved.exists, "the first round is saved", logs=federation.logs)
        wait_for(lambda: federation.silos_at_trunk(own), "silos train", logs=federation.logs)
        time.sleep(random.Random(0).uniform(0.0, 1.0))
        (server_app,) = federation.members("flwr-serverapp")
        server_app.kill()
        assert not (cut / "checkpoints" / f"round-{ROUNDS:05d}").exists()

        # At once: Flower itself finds out after a minute only.
        again = federation.run(app, output_dir=str(cut), resume=True)
        assert again.status == COMPLETED, f"{again}\n{federation.logs()}"
        assert "the run goes on after round 1" in federation.run_log(again.run_id)
        federation.assert_idle(own)
        # What silos keep is by the run and those that resume it, and these are two.
        kept = federation.folder / "state" / "flower-split" / "optimizer"
        assert len(list(kept.iterdir())) == 2
    assert outcome(cut) == outcome(whole)
