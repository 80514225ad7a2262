from dataclasses import MISSING

import pytest

from flower_split.config.run_config import read_run_config, run_keys
from flower_split.config.sections import SplitConfig
from flower_split.errors import ConfigError


def problems_of(run_config, **kwargs):
    with pytest.raises(ConfigError) as caught:
        read_run_config(run_config, **kwargs)
    return str(caught.value)


def test_every_key_reaches_its_field():
    given = {
        "model.name": "gpt2",
        "split.bottom-layers": 2,
        "lora.r": 4,
        "lora.alpha": 8,
        "lora.target-modules": "q_proj, v_proj",
        "train.learning-rate": 1,
        "trunk.adapters": "shared",
        "wire.h1": "bf16",
        "data.prompt": "meaning",
        "strategy.name": "fedadam",
        "strategy.eta": 0.5,
        "strategy.beta-1": 0,
        "num-server-rounds": 7,
        "round-timeout": 10,
        "evaluate-initial": False,
    }
    config = read_run_config(given)
    assert config.model.name == "gpt2"
    assert config.split.bottom_layers == 2
    assert config.split.top_layers == 1
    assert config.lora.target_modules == ("q_proj", "v_proj")
    assert (config.lora.r, config.lora.alpha) == (4, 8.0)
    assert isinstance(config.train.learning_rate, float)
    assert config.trunk.adapters == "shared"
    assert config.wire.h1 == "bf16"
    assert config.data.prompt == "meaning"
    assert config.strategy.options == {"eta": 0.5, "beta_1": 0}
    assert config.num_server_rounds == 7
    assert config.round_timeout == 10.0
    assert config.evaluate_initial is False


def test_defaults_are_those_of_the_sections():
    defaults = {key.key: key.default for key in run_keys().values() if key.default is not MISSING}
    given = {
        key: ",".join(value) if isinstance(value, tuple) else value
        for key, value in defaults.items()
    }
    assert read_run_config({"model.name": "m", **given}) == read_run_config({"model.name": "m"})


def test_the_class_method_reads_the_same():
    given = {"model.name": "m", "train.batch-size": 3}
    assert SplitConfig.from_run_config(given) == read_run_config(given)


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("modle.name", "x", "model.name"),
        ("train.learning_rate", 0.1, "train.learning-rate"),
        ("learning-rate", 0.1, "train.learning-rate"),
        ("num-rounds", 3, "num-server-rounds"),
        ("strategy.nam", "fedavg", "strategy.name"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, value, nearest):
    said = problems_of({"model.name": "m", key: value})
    assert f"unknown key {key!r}; did you mean {nearest!r}?" in said


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("train.batch-size", "8", "a whole number"),
        ("train.batch-size", 8.0, "a whole number"),
        ("train.batch-size", True, "a whole number"),
        ("train.learning-rate", "1e-3", "a number"),
        ("lora.rslora", 1, "true or false"),
        ("model.name", 3, "text"),
        ("lora.target-modules", 3, "text, with commas"),
    ],
)
def test_a_wrong_type_says_what_is_expected(key, value, wanted):
    said = problems_of({"model.name": "m"} | {key: value})
    assert f"{key} must be {wanted}" in said
    assert repr(value) in said


def test_a_refused_value_makes_no_second_problem_of_its_default():
    keys = {"model.name": "m", "model.task": "sequence-classification", "model.labels": "a,b,a"}
    assert problems_of(keys) == "model.labels names 'a' twice: name every label once"


def test_all_problems_come_at_once():
    said = problems_of(
        {
            "train.batch-size": 0,
            "train.max-length": "long",
            "train.schedule": "exponential",
            "lora.r": 0,
            "lora.dropout": 2,
            "data.partitioner": "dirichlet",
            "trunk.adapters": "melted",
            "nonsense": 1,
            "num-server-rounds": 0,
            "seed": -1,
        }
    )
    expected = (
        "model.name is missing",
        "train.batch-size must be an integer of at least 1",
        "train.max-length must be a whole number",
        "train.schedule must be one of",
        "lora.r must be",
        "lora.dropout must be",
        "data.partition-by",
        "trunk.adapters must be one of",
        "unknown key 'nonsense'",
        "num-server-rounds must be",
        "seed must be",
    )
    assert said.startswith(f"{len(expected)} problems in the run config:")
    for part in expected:
        assert part in said, part


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"train.batch-size": 64, "train.max-length": 4096}, "trunk.max-message-tokens"),
        ({"train.in-flight": 9}, "trunk.max-in-flight 8"),
        ({"trunk.max-activation-tokens": 9}, "trunk.max-activation-tokens 9 lets the trunk keep"),
        ({"trunk.gather-ms": -1.0}, "trunk.gather-ms must be"),
        ({"trunk.host": "0.0.0.0"}, "trunk.advertise"),
        ({"baseline-alone": True, "trunk.adapters": "shared"}, "not 'shared'"),
        ({"sample-prompt": "a", "strategy.fraction-evaluate": 0}, "sample-prompt is continued"),
        ({"trunk.advertise": "example.org:https"}, "trunk.advertise must be host:port"),
        ({"trunk.advertise": "::1:443"}, "IPv6 host in brackets"),
        ({"tls.mode": "off", "trunk.host": "::", "trunk.advertise": "a:1"}, "not loopback"),
        ({"tls.mode": "files", "tls.private-key": "/k"}, "needs both tls.certificate and"),
        ({"tls.certificate": "/c"}, "tls.certificate would not be used with tls.mode 'ephemeral'"),
        ({"tls.mode": "off", "tls.client-ca": "/c"}, "cannot demand certificates"),
        ({"tls.mode": "on"}, "tls.mode must be one of ephemeral, files, off"),
        ({"train.local-steps": 2, "train.warmup-steps": 100}, "train.warmup-steps is 100"),
        ({"strategy.min-replies": 3, "strategy.min-nodes": 2}, "raise strategy.min-nodes"),
        ({"strategy.filter": "on"}, "strategy.filter must be one of off, warn, refuse"),
        ({"strategy.filter-norm": 0.5}, "strategy.filter-norm must be a number at least 1"),
        ({"strategy.filter-share": 0.0}, "strategy.filter-share must be a number above 0"),
        ({"data.packing": True, "peft.type": "PREFIX_TUNING"}, "set data.packing to false"),
        ({"data.packing": True, "model.task": "masked-lm"}, "data.packing is for model.task"),
        ({"data.messages": "m", "model.task": "masked-lm"}, "data.messages is for model.task"),
        ({"data.template": "{a}", "model.task": "masked-lm"}, "data.template is for model.task"),
        ({"data.long-texts": "cut", "model.task": "masked-lm"}, "data.long-texts is for"),
        ({"data.template": "{a}", "data.prompt": "b"}, "data.prompt and data.template are ways"),
        ({"data.eval-split": "train"}, "data.eval-split is 'train', on which"),
    ],
)
def test_settings_that_contradict_each_other(given, named):
    assert named in problems_of({"model.name": "m", **given})


def test_plaintext_is_for_loopback_or_by_an_explicit_word():
    read_run_config({"model.name": "m", "tls.mode": "off", "trunk.host": "::1"})
    far = {"tls.mode": "off", "trunk.host": "0.0.0.0", "trunk.advertise": "a:1"}
    config = read_run_config({"model.name": "m", **far, "tls.allow-plaintext": True})
    assert config.tls.allow_plaintext


def test_a_single_problem_stands_alone():
    assert problems_of({"model.name": "m", "lora.r": 0}).startswith("lora.r must be")


def test_two_contradictions_and_a_bad_value_come_together():
    said = problems_of({"model.name": "m", "train.batch-size": 9999, "trunk.host": "", "lora.r": 0})
    assert said.startswith("3 problems")


def test_keys_of_the_app_itself_are_left_alone():
    assert read_run_config({"model.name": "m", "app.note": "mine"}).model.name == "m"


def test_the_strategys_own_check_is_heard_with_the_others():
    said = problems_of(
        {"model.name": "m", "lora.r": 0, "strategy.eta": 1},
        check_strategy=lambda strategy: [f"no {name}" for name in strategy.options],
    )
    assert "lora.r" in said
    assert "no eta" in said


def test_numbers_of_silos_are_read_from_text():
    lora = read_run_config({"model.name": "m", "lora.ranks": "4, 8,", "lora.alphas": "8, 0.5"}).lora
    assert (lora.ranks, lora.alphas) == ((4, 8), (8.0, 0.5))


def test_a_choice_of_cuts_is_read():
    split = read_run_config(
        {"model.name": "m", "split.max-bottom-layers": 3, "split.bottoms": "3, 1", "split.tops": ""}
    ).split
    assert (split.bottom_layers, split.most_bottom, split.bottoms) == (1, 3, (3, 1))
    assert (split.top_layers, split.most_top, split.tops) == (1, 1, ())
    assert split.leaves_choice
    assert not read_run_config({"model.name": "m", "split.max-top-layers": 1}).split.leaves_choice
    fixed = split.fixed(2, 1)
    assert (fixed.bottom_layers, fixed.top_layers, fixed.leaves_choice) == (2, 1, False)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"split.max-bottom-layers": -1}, "split.max-bottom-layers must be an integer of at least"),
        ({"split.top-layers": 3, "split.max-top-layers": 2}, "less than split.top-layers 3"),
        ({"split.bottoms": "1, 2"}, "split.bottoms has 2, and silos may hold 1 only"),
        (
            {"split.tops": "0", "split.max-top-layers": 2},
            "split.tops has 0, and silos may hold 1 to",
        ),
        ({"split.tops": "1, x"}, "split.tops must be text, with commas between several numbers"),
        (
            {"split.bottoms": "1.5"},
            "split.bottoms must be text, with commas between several numbers",
        ),
        ({"split.max-bottom-layers": 2, "trunk.adapters": "shared"}, "other layers for each"),
    ],
)
def test_cuts_that_cannot_be_are_named(values, said):
    with pytest.raises(ConfigError, match=said):
        read_run_config({"model.name": "m", **values})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lora.ranks", "4, x", "lora.ranks must be text, with commas between several numbers"),
        ("lora.ranks", "4, 0", "lora.ranks must be an integer of at least 1, not 0"),
        ("lora.ranks", "4, 65", "lora.ranks has 65, more than lora.max-r 64"),
        ("lora.alphas", "nan", "lora.alphas must be a number above 0"),
    ],
)
def test_numbers_of_silos_that_are_wrong_are_named(key, value, said):
    with pytest.raises(ConfigError, match=said):
        read_run_config({"model.name": "m", key: value})
