"""What a trunk service is told of a run makes the same trunk there."""

from flower_split.config.run_config import read_run_config
from flower_split.control.run_settings import read_settings, told_settings
from flower_split.privacy import PrivacySettings


def test_dp_sgd_is_told_to_a_service() -> None:
    config = read_run_config(
        {
            "model.name": "flower_split.quickstart:base",
            "data.path": "here.jsonl",
            "train.max-grad-norm": 0.0,
            "train.accumulation": 4,
            "dp.noise": 1.5,
            "dp.clip": 0.25,
        }
    )
    read = read_settings(told_settings(config))
    assert read.dp == config.dp and read.data.path == ""
    privacy = PrivacySettings.of_training(read.dp, read.train)
    assert privacy == PrivacySettings(noise=1.5, clip=0.25, expected_batch=32)
