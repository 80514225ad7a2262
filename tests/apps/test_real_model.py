"""The example with a real model: its questions are chats, and its settings take them."""

import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flower_split import load_tokenizer
from flower_split.config.run_config import read_run_config
from flower_split.data import load_silo
from flower_split.quickstart import BASE_MODEL

EXAMPLE = Path(__file__).parents[2] / "examples/real_model"
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_real_model", EXAMPLE / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(prepare: ModuleType) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = prepare.questions("numpy")
    return found


@pytest.mark.exhaustive
def test_questions_are_the_same_at_every_call_and_asked_once(
    prepare: ModuleType, rows: list[dict[str, Any]]
) -> None:
    assert rows == prepare.questions("numpy")
    asked = [row["messages"][0]["content"] for row in rows]
    assert len(asked) == len(set(asked)) == prepare.EXAMPLES
    assert {len(row["messages"]) for row in rows} == {2}
    assert all(40 <= len(row["messages"][1]["content"]) <= 200 for row in rows)


@pytest.mark.medium
def test_the_settings_take_them(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    app = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))
    values = {
        f"{section}.{key}" if isinstance(held, dict) else section: value
        for section, held in app["tool"]["flwr"]["app"]["config"].items()
        for key, value in (held.items() if isinstance(held, dict) else [(section, held)])
    }
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    values |= {"model.name": BASE_MODEL, "data.path": str(path)}
    config = read_run_config(values)
    tokenizer = load_tokenizer(BASE_MODEL)
    tokenizer.chat_template = TEMPLATE
    silo = load_silo(
        config.data,
        tokenizer,
        max_length=config.train.max_length,
        partition_id=0,
        num_partitions=1,
        seed=0,
    )
    learnt = silo.train.sequences[0][silo.train.learnt[0] == 1]
    assert tokenizer.decode(learnt).removesuffix(tokenizer.eos_token) in {
        row["messages"][1]["content"] for row in rows
    }


def test_a_package_that_is_missing_is_named(prepare: ModuleType) -> None:
    with pytest.raises(SystemExit, match="nowhere is not installed: pip install nowhere"):
        prepare.found("nowhere", hint="pip install nowhere")
