"""A plan: sizes and rates as people write them, and the shallowest cut that fits."""

import json

import pytest
from tiny_models import tiny_model
from toy_trunk import toy_config
from typer.testing import CliRunner

from flower_split.apps.checking.planning import make_plan, parse_bandwidth, parse_bytes
from flower_split.apps.cli import cli
from flower_split.errors import ConfigError

BASE = "flower_split.quickstart:base"


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8_000_000_000), ("16 GiB", 2**34), ("1.5mb", 1_500_000), ("900", 900)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "8 GBit", "much", "1.2.3GB", ".", "-1GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 8GB"):
        parse_bytes(text)


def test_rates() -> None:
    assert [parse_bandwidth(one) for one in ("100Mbit", "1 Gbit/s", "9600bit")] == [1e8, 1e9, 9600]
    for text in ("100", "100MB", "0Mbit", "."):
        with pytest.raises(ConfigError, match="such as 100Mbit"):
            parse_bandwidth(text)


def plan(memory: int = 0, bandwidth: float = 1e9, layers: int = 8):  # type: ignore[no-untyped-def]
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from flower_split.config.sections import ModelConfig

    with TemporaryDirectory() as folder:
        tiny_model(layers=layers).config.save_pretrained(folder)
        config = replace(toy_config(), model=ModelConfig(name=folder))
        return make_plan(config, client_memory=memory, bandwidth=bandwidth)


@pytest.mark.medium
def test_two_layers_at_either_end_where_they_fit() -> None:
    everything = plan()
    assert [cut.cuts.bottom_layers for cut in everything.cuts] == [0, 1, 2]
    assert everything.cut is everything.cuts[2]
    sizes = [cut.silo.bytes for cut in everything.cuts]
    assert sizes == sorted(sizes)
    assert plan(sizes[1]).cut.cuts.bottom_layers == 1
    assert plan(sizes[0] - 1).cut is None
    assert [cut.cuts.bottom_layers for cut in plan(layers=3).cuts] == [0, 1]


@pytest.mark.medium
def test_the_codec_follows_the_network_and_is_never_nf4() -> None:
    fast = plan(bandwidth=1e9)
    assert fast.codec.name == "fp32"
    step = fast.codec.step_bytes
    assert plan(bandwidth=step * 4 / 1.5).codec.name == "bf16"
    assert plan(bandwidth=step * 4 / 3).codec.name == "int8"
    assert plan(bandwidth=1.0).codec.name == "int8"
    assert fast.codec.seconds == pytest.approx(step / 2 * 8 / 1e9)


@pytest.mark.medium
def test_the_command_recommends_settings_and_fails_where_nothing_fits() -> None:
    given = ["plan", BASE, "-c", "train.max-length=128", "--client-memory"]
    done = CliRunner().invoke(cli, [*given, "8GB"])
    assert done.exit_code == 0
    assert "recommended: split.bottom-layers=2 split.top-layers=2 wire.h1=" in done.stdout
    assert "1.0 M, 58%" in done.stdout and "…" not in done.stdout  # in 80 columns
    done = CliRunner().invoke(cli, [*given, "1MB"])
    assert done.exit_code == 1 and "no cut fits 1.0 MB" in done.stdout
    done = CliRunner().invoke(cli, [*given, "8GB", "--json"])
    answer = json.loads(done.stdout)
    assert answer["recommended"]["split.bottom-layers"] == 2
    assert {one["name"] for one in answer["codecs"]} >= {"fp32", "int8", "nf4"}
