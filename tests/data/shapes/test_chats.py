"""Chats: the forms in which data sets have them, and what is no chat."""

import json
from typing import Any

import chat_templates as shapes
import pytest
from transformers import PreTrainedTokenizerFast

from flower_split.config.data import DataConfig
from flower_split.data import Examples
from flower_split.data.shapes.chats import chat_messages
from flower_split.data.tokenizing import tokenize_silo
from flower_split.errors import DataError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    found.chat_template = shapes.CHATML
    return found


def texts(tokenizer: PreTrainedTokenizerFast, rows: Any, **fields: Any) -> list[str]:
    examples = rows if isinstance(rows, Examples) else Examples.all_of(rows, origin="here")
    config = DataConfig(messages="messages", **fields)
    data = tokenize_silo(examples, tokenizer, config, max_length=512)
    return [str(tokenizer.decode(ids)) for ids in data.sequences]


def test_sharegpts_form_is_the_same_chat(chatty: PreTrainedTokenizerFast) -> None:
    theirs = [
        {"from": "system", "value": "Be kind"},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
    ]
    ours = [{"role": "system", "content": "Be kind"}, USER, ANSWER]
    rows = [{"messages": theirs}, {"messages": ours}, {"messages": json.dumps(ours)}]
    found = texts(chatty, rows)
    assert found[0] == found[1] == found[2]
    assert "Be kind" in found[0]


def test_tools_are_a_list_or_its_json_and_may_be_absent(chatty: PreTrainedTokenizerFast) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    chat = [USER, ANSWER]
    rows = [
        {"messages": chat, "tools": tools},
        {"messages": chat, "tools": '[{"type": "function", "function": {"name": "f"}}]'},
        {"messages": chat, "tools": None},
        {"messages": chat, "tools": []},
        {"messages": chat},
    ]
    first, second, *without = texts(chatty, rows)
    assert first == second
    assert '"name": "f"' in first
    assert len(set(without)) == 1
    assert "Tools" not in without[0]
    assert texts(chatty, rows[:1], tools="") == without[:1]


def test_arrows_nulls_are_no_keys(chatty: PreTrainedTokenizerFast) -> None:
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    call = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": "1"}}}],
    }
    other = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "g", "arguments": {"y": "2"}}}],
    }
    rows = [{"messages": [USER, call]}, {"messages": [USER, other, ANSWER]}]
    table = datasets.Dataset.from_list(rows)
    assert table[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] != {"x": "1"}
    mapped = Examples(origin="here", rows=table, picked=range(2), sparse=True)
    assert texts(chatty, mapped) == texts(chatty, rows)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("Hi", "must be a list of messages, not str"),
        ([], "has no message"),
        ('[{"role": "the patient"', "must be a list of messages, and is no valid JSON"),
        (["Hi"], "message 1 must be an object with role and content, not str"),
        ([{"content": "Hi"}], "message 1 has no role"),
        ([USER, {"role": "assistant"}], "message 2 has no content"),
        ([{"role": "user", "content": 3}], "message 1 has a content of int"),
        ([USER, {"role": "assistant", "content": ""}], "message 2 is an empty turn"),
        ([{"from": "the patient", "value": "Hi"}], "from a speaker that is none of assistant, "),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 has a part that is no"),
    ],
)
def test_what_is_no_chat_is_told_and_not_quoted(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"^here: field 'm'.*{said}") as caught:
        chat_messages(value, "here: field 'm'")
    assert "patient" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [USER]}, "has no turn of the assistant to learn"),
        ({"messages": [USER, {**ANSWER, "content": "\ud83d"}]}, "half of a surrogate pair"),
        ({"messages": [USER, ANSWER], "tools": "f"}, "field 'tools' must be a list of tools, or"),
        ({"messages": [USER, ANSWER], "tools": ["f"]}, "field 'tools' must be a list of tools,"),
        ({"text": "Hi"}, "no field 'messages'; the fields there are 'text'"),
    ],
)
def test_what_cannot_be_learnt_is_told(
    chatty: PreTrainedTokenizerFast, row: Any, said: str
) -> None:
    with pytest.raises(DataError, match=f"here, example 1: .*{said}"):
        texts(chatty, [row])


def test_a_tokenizer_without_a_template_is_told(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"has no chat template, which data\.messages needs"):
        texts(tokenizer, [{"messages": [USER, ANSWER]}])


def test_a_templates_failure_is_told_without_the_data(
    chatty: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    chatty.chat_template = "{{ raise_exception('no ' + messages[0].content) }}"
    with pytest.raises(DataError, match=r"does not take this chat \(TemplateError\)") as caught:
        texts(chatty, [{"messages": [{**USER, "content": "patient"}, ANSWER]}])
    assert "patient" not in str(caught.value)
    assert "patient" in caplog.text


def test_rows_with_a_chat_tell_what_to_set(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = Examples.all_of([{"messages": [USER, ANSWER]}], origin="here")
    with pytest.raises(DataError, match=r"looks like a chat: set data\.messages to 'messages'"):
        tokenize_silo(examples, tokenizer, DataConfig(), max_length=8)
