"""A run at a service names modules; no regular expression of its is matched there."""

import json

import pytest
from steps import run_config

from flower_split.config.run_config import read_run_config
from flower_split.control.patterns import MOST_NAMES, check_patterns
from flower_split.control.run_settings import told_settings
from flower_split.errors import ConfigError

SLOW = "(([a-z._0-9]*)*)*!"


def config(**keys):
    return read_run_config({**run_config("m"), **keys})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft.exclude-modules", SLOW),
        ("peft.layers-pattern", SLOW),
        ("peft.rank-pattern", json.dumps({SLOW: 4})),
        ("peft.alpha-pattern", json.dumps({f"q_proj|{SLOW}": 4})),
        ("lora.target-modules", f"q_proj,{SLOW}"),
        ("peft.exclude-modules", ".*"),
        ("peft.exclude-modules", "a" * 300),
    ],
)
def test_a_pattern_is_refused_by_its_key(key, value):
    with pytest.raises(ConfigError, match=key):
        check_patterns(config(**{key: value}))


def test_a_strategy_is_told_before_it_asks_the_service():
    with pytest.raises(ConfigError, match="regular expression"):
        told_settings(config(**{"peft.exclude-modules": SLOW}))


def test_too_many_names_are_refused():
    with pytest.raises(ConfigError, match=str(MOST_NAMES)):
        check_patterns(config(**{"lora.target-modules": ",".join(["q_proj"] * (MOST_NAMES + 1))}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft.exclude-modules", "lm_head, model.layers.0.mlp.down_proj"),
        ("peft.rank-pattern", json.dumps({"model.layers.1.self_attn.q_proj": 4, "v_proj": 2})),
        ("peft.layers-pattern", "layers"),
        ("lora.target-modules", "all-linear"),
        ("peft.use-dora", True),
    ],
)
def test_names_are_taken(key, value):
    check_patterns(config(**{key: value}))


def test_a_prompts_words_are_compared_with_nothing():
    peft = {"peft.type": "PROMPT_TUNING", "peft.num-virtual-tokens": 4}
    words = {"peft.prompt-tuning-init": "TEXT", "peft.prompt-tuning-init-text": "What is (this)*?"}
    told = {**run_config("m"), "trunk.adapters": "frozen", **peft, **words}
    told = {key: value for key, value in told.items() if not key.startswith("lora.")}
    check_patterns(read_run_config(told))
