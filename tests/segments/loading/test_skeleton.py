"""Skeletons and tokenizers: what a checkpoint's small files tell."""

import json
from pathlib import Path

import pytest
from tiny_checkpoint import WORDS, save_tiny_model
from tiny_models import CASE_BY_NAME, CASES, Case

from flower_split.errors import UnsupportedFamilyError, WeightsError
from flower_split.segments import fingerprint, load_skeleton, load_tokenizer

ONE_OF_EACH = {case.model_type: case for case in CASES} | {"open": CASE_BY_NAME["falcon-new"]}


@pytest.mark.parametrize("case", ONE_OF_EACH.values(), ids=lambda case: case.name)
def test_skeleton_is_the_whole_model_without_weights(case: Case, tmp_path: Path) -> None:
    config = case.config()
    config.save_pretrained(tmp_path)
    before = config.to_dict()
    skeleton = load_skeleton(tmp_path)
    tensors = [*skeleton.parameters(), *skeleton.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    model = case.model()
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == expected
    assert fingerprint(skeleton.config) == fingerprint(model.config)
    assert type(load_skeleton(config)) is type(skeleton)
    assert config.to_dict() == before


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        load_skeleton(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "names no model_type"),
        ("{}", "names no model_type"),
        ('{"model_type": 3}', "names no model_type"),
        ('{"model_type": "llama", "hidden_size": "many"}', "is no valid configuration of 'llama'"),
    ],
)
def test_broken_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=message):
        load_skeleton(tmp_path)


def test_a_configuration_of_which_no_model_is_made(tmp_path: Path) -> None:
    config = CASE_BY_NAME["llama"].config(pad_token_id=1000)
    config.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"no llama model can be made .* Padding_idx must be"):
        load_skeleton(tmp_path)


def test_what_is_no_causal_language_model_of_transformers(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in (
        {"model_type": "vit"},
        {"model_type": "theirs", "auto_map": {"AutoConfig": "code.TheirConfig"}},
    ):
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(UnsupportedFamilyError, match=content["model_type"]):
            load_skeleton(tmp_path)


def test_tokenizer(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer(f"{WORDS[0]} {WORDS[2]}")["input_ids"]
    assert tokenizer.decode(ids) == f"{WORDS[0]} {WORDS[2]}"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_tokenizer(family: str, tmp_path: Path) -> None:
    CASE_BY_NAME[family].model().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"has no tokenizer: expected tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_broken_tokenizer(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_tokenizer(tmp_path)
