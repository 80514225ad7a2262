"""The prompt format is left with result and adapter, and the card's code continues a prompt."""

import json
import re

import pytest
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid

from flower_split.apps.client_app import app as client_app
from flower_split.apps.prompt_format import prompt_format
from flower_split.apps.server_app import app as server_app
from flower_split.config.run_config import run_keys
from flower_split.reporting import read_result

DEFAULTS = {key: entry.default for key, entry in run_keys().items()}


@pytest.mark.parametrize(
    ("changes", "form"),
    [
        ({}, {"template": "BOS{text}EOS", "prompt": "", "separator": ""}),
        (
            {"data.prompt": "question", "data.text": "answer"},
            {
                "template": "BOS{question}\n{answer}EOS",
                "prompt": "{question}\n",
                "separator": "\n",
            },
        ),
        (
            {"data.template": "Ask: {question}\n{text} {{}}!"},
            {
                "template": "BOSAsk: {question}\n{text} {{}}!EOS",
                "prompt": "Ask: {question}\n",
                "separator": "",
            },
        ),
        (
            {"data.template": "Ask: {question} ", "data.text": "answer"},
            {
                "template": "BOSAsk: {question} {answer}EOS",
                "prompt": "Ask: {question} ",
                "separator": "",
            },
        ),
        (
            {"data.messages": "turns"},
            {
                "template": "{turns}",
                "written_by": "the chat template of the base model's tokenizer",
                "tools": "{tools}",
            },
        ),
        ({"model.task": "masked-lm"}, {"template": "{text}"}),
        (
            {"model.task": "sequence-classification", "data.text-pair": "second"},
            {"template": "{text}{second}", "label": "label"},
        ),
    ],
)
def test_the_format_of_settings(changes, form):
    assert prompt_format({**DEFAULTS, **changes}) == form


@pytest.mark.medium
def test_a_run_leaves_its_format_and_the_cards_code_works(run_config, tmp_path, monkeypatch, tiny):
    values = {**run_config, "output-dir": str(tmp_path), "num-server-rounds": 1}
    grid = InProcessGrid(client_app, 3, run_config=values)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), values))
    form = json.loads((tmp_path / "adapter/prompt_format.json").read_text())
    assert form == dict(read_result(tmp_path / "result.json").prompt_format)
    assert form["template"].startswith("BOS{")
    text = (tmp_path / "adapter/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # The card names no folder of the server's.
    assert str(tiny) not in text
    namespace: dict[str, object] = {}
    exec(code.replace("base = 'model'", f"base = {str(tiny / 'model')!r}"), namespace)
    assert len(namespace["written"][0]) > namespace["prompt"]["input_ids"].shape[1]  # type: ignore[index]


@pytest.mark.exhaustive
def test_examples_are_shown_where_a_silo_says_so_and_nowhere_else(run_config, tmp_path, capfd):
    values = {**run_config, "output-dir": str(tmp_path), "num-server-rounds": 2}
    nodes = [{"show-examples": 2}, {}, {}]
    grid = InProcessGrid(client_app, 3, run_config=values, node_config=nodes)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), values))
    said = capfd.readouterr()
    shown = [line for line in said.err.splitlines() if "tokens, " in line]
    assert len(shown) == 2 and all(line.startswith("silo 0: ") for line in shown)
    assert "with a loss" not in said.out + (tmp_path / "result.json").read_text()
