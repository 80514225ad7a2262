"""A run's settings reach the trunk's queue."""

from dataclasses import asdict

from flower_split.config.trunk import TrunkConfig
from flower_split.server.compute.queue import BatchSettings


def test_every_setting_is_the_runs() -> None:
    changed = {
        "batching": True,
        "batch_tokens": 7,
        "gather_ms": 1.5,
        "recompute": True,
        "max_activation_tokens": 99,
        "max_memory": 2.5,
    }
    assert asdict(BatchSettings.of_trunk(TrunkConfig(**changed))) == changed  # type: ignore[arg-type]
    assert BatchSettings.of_trunk(TrunkConfig()) == BatchSettings()
