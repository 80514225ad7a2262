from pathlib import Path

import pytest

from flower_split.client.model_source import ModelSource, _cache_folder
from flower_split.client.node_config import NodeConfig
from flower_split.config.sections import ModelConfig
from flower_split.delivery.fetching import Fetched
from flower_split.errors import TrunkUnavailableError

CONFIG = ModelConfig(name="some/model", revision="main", delivery="server")
FETCHED = Fetched(folder=Path("/cache/models/x"), num_bytes=7, seconds=0.5)


def test_the_silos_own_model_is_the_configured_one():
    source = ModelSource(ModelConfig(name="some/model", revision="main"))
    assert (source.name, source.revision, source.pack) == ("some/model", "main", "")
    assert source.statistics == {}


def test_a_delivered_model_is_fetched_when_it_is_asked_for_and_once():
    calls = []

    def fetch():
        calls.append(1)
        return FETCHED

    source = ModelSource(CONFIG, "ab", fetch)
    assert source.statistics == {"delivery-bytes": 0, "delivery-seconds": 0.0}
    assert not calls
    assert source.name == source.name == "/cache/models/x"
    assert (source.revision, len(calls)) == ("", 1)
    assert source.statistics == {"delivery-bytes": 7, "delivery-seconds": 0.5}


def test_a_fetch_that_failed_is_tried_again():
    outcomes = iter([TrunkUnavailableError("gone"), FETCHED])

    def fetch():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    source = ModelSource(CONFIG, "ab", fetch)
    with pytest.raises(TrunkUnavailableError):
        _ = source.name
    assert source.name == "/cache/models/x"


def test_sources_of_the_same_model_are_equal():
    assert ModelSource(CONFIG, "ab", lambda: FETCHED) == ModelSource(CONFIG, "ab")
    assert len({ModelSource(CONFIG, "ab"), ModelSource(CONFIG, "ab", lambda: FETCHED)}) == 1
    assert ModelSource(CONFIG, "ab") != ModelSource(CONFIG, "cd")


def test_the_cache_is_where_the_operator_or_the_desktop_wants_it(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert _cache_folder(NodeConfig()) == Path("/x/flower-split")
    assert _cache_folder(NodeConfig(cache_dir="/own")) == Path("/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/silo")
    assert _cache_folder(NodeConfig()) == Path("/home/silo/.cache/flower-split")
