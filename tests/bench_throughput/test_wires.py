"""The wire table, at toy size."""

import pytest
import wires

from flower_split.config.sections import CODECS


@pytest.mark.exhaustive
def test_it_measures_every_codec(bench) -> None:
    found = wires.tabulate(bench, toy=True)
    assert list(found.figures) == list(CODECS)
    assert found.ratios["int8_bytes_over_fp32"] <= 0.27
    assert found.figures["nf4"]["bytes_over_fp32"] <= 0.14
    assert all(0 < figures["codec_share_of_step"] < 1 for figures in found.figures.values())
    assert found.figures["int8"]["final_loss_over_fp32"] > 0


def test_it_trains_with_the_quickstart_s_settings() -> None:
    assert wires.quickstart_settings()["train.learning-rate"] == 1e-2
