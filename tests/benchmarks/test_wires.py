"""The benchmark of the codecs runs, at toy size."""

import math

from benchmark_scripts import load_benchmark

from flower_split.config.sections import CODECS


def test_it_measures_every_codec() -> None:
    bench = load_benchmark("wires")
    shape = bench.Shape(
        layers=5,
        hidden=64,
        heads=2,
        vocabulary=31,
        tokens=8,
        microbatches=1,
        turns=1,
        threads=1,
        loss_steps=0,
    )
    results = bench.measure(shape)
    assert list(results) == list(CODECS)
    assert results["int8"]["bytes_over_fp32"] <= 0.27
    assert results["nf4"]["bytes_over_fp32"] <= 0.14
    assert all(0 < figures["codec_share_of_step"] < 1 for figures in results.values())


def test_it_trains_with_the_quickstart_s_settings() -> None:
    bench = load_benchmark("wires")
    settings = bench.quickstart_settings() | {"data.max-examples": 4}
    assert settings["train.learning-rate"] == 1e-2
    assert math.isfinite(bench.final_loss("int8", 1, settings))
