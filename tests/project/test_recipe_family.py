"""The recipe of a model family, followed by a package outside flower_split."""

import math
from pathlib import Path

import pytest
from in_process_grid import InProcessGrid
from outside_package import install
from tiny_checkpoint import WORDS, save_tiny_run, tiny_run_config
from tiny_models import Case
from transformers import AutoModelForCausalLM, PreTrainedConfig

from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_run import serve_run
from flower_split.errors import UnsupportedFamilyError
from flower_split.segments import check_exact, family_of

GROUP = "flower_split.families"
CODE = """
from flower_split.segments import Family

OLMO = Family(model_type="olmo", mixes_rows=True)


def made() -> Family:
    return OLMO


def failing() -> Family:
    raise RuntimeError("no such thing")
"""
OLMO = Case(
    name="olmo",
    model_type="olmo",
    values={
        "vocab_size": 4 + len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "clip_qkv": 0.5,
    },
)


@pytest.mark.sampled(keep=1)
@pytest.mark.medium
@pytest.mark.parametrize("target", ["OLMO", "made"])
def test_a_family_of_another_package_is_exact_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    model = OLMO.model()
    plugin = {GROUP: {"olmo": f"olmo_family_{target}:{target}"}}
    install(tmp_path / "site", f"olmo_family_{target}", plugin, CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    check_exact(model, 1, 1)

    config = tiny_run_config(save_tiny_run(tmp_path), **{"num-server-rounds": 1})
    model.save_pretrained(tmp_path / "model")
    result = serve_run(InProcessGrid(client_app, 3, run_config=config), config)
    before = result.evaluate_metrics_clientapp[0]["eval-loss"]
    after = result.evaluate_metrics_clientapp[1]["eval-loss"]
    assert isinstance(before, float) and isinstance(after, float)
    assert math.isfinite(before) and after < before
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "model")) is type(model)


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("nowhere", "no_such_module:FAMILY", "cannot be imported from no_such_module:FAMILY"),
        ("nofamily", "builtins:dict", "must be a Family of flower_split.segments, .*not a dict"),
        ("broken", "broken_family:failing", "cannot be made: RuntimeError: no such thing"),
        ("olmo3", "broken_family:OLMO", "has the model_type 'olmo': name the entry point after"),
        ("llama", "broken_family:OLMO", "the name of one of flower_split's own"),
    ],
)
def test_a_broken_family_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str, said: str
) -> None:
    install(tmp_path, "broken_family", {GROUP: {name: target}}, CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnsupportedFamilyError, match=said) as caught:
        family_of(PreTrainedConfig(model_type=name))
    assert "broken_family" in str(caught.value)


def test_two_packages_with_one_family_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("first_family", "second_family"):
        install(tmp_path, package, {GROUP: {"olmo": f"{package}:OLMO"}}, CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnsupportedFamilyError, match="first_family and second_family"):
        family_of(OLMO.config())
