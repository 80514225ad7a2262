"""Prompts: the ids that training made of the same words, or a refusal."""

import chat_templates
import pytest
from tiny_checkpoint import save_tiny_model
from transformers import AutoTokenizer

from flower_split.apps.prompt_format import prompt_format
from flower_split.apps.using.prompts import PromptForm
from flower_split.config.data import DataConfig
from flower_split.data.examples import Examples
from flower_split.data.tokenizing import tokenize_silo
from flower_split.errors import PromptError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    found = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("chat")))
    found.add_special_tokens({"additional_special_tokens": chat_templates.SPECIAL})
    found.chat_template = chat_templates.CHATML
    return found


def examples(*rows):
    return Examples(origin="here", rows=rows, picked=range(len(rows)))


def said(text, role="user"):
    return {"role": role, "content": text}


def trained_prompt(tokenizer, row, **data):
    """The ids without a loss of an example, as training makes them."""
    made = tokenize_silo(examples(row), tokenizer, DataConfig(**data), max_length=64)
    return made.sequences[0][: made.prompt_lengths[0]].tolist()


TEMPLATE = "sum: {first} of {{the}} {second} returns"


@pytest.mark.parametrize(
    ("data", "row", "values"),
    [
        ({"prompt": "q"}, {"q": "the sum", "text": "a"}, {}),
        ({"template": "sum {q} returns {text}"}, {"q": "the sum", "text": "a"}, {}),
        ({"template": TEMPLATE}, {"first": "the sum", "second": "x", "text": "a"}, {"second": "x"}),
        ({"template": TEMPLATE}, {"first": "the sum", "second": "", "text": "a"}, {}),
        ({"template": TEMPLATE}, {"second": "the sum", "first": "a", "text": "a"}, {"first": "a"}),
    ],
)
def test_a_prompt_is_what_training_made_of_it(tokenizer, data, row, values) -> None:
    settings = {f"data.{name}": value for name, value in data.items()}
    form = PromptForm(prompt_format(settings), tokenizer)
    assert form.ids([said("the sum")], values) == trained_prompt(tokenizer, row, **data)


def test_plain_texts_go_on(tokenizer) -> None:
    form = PromptForm(prompt_format({}), tokenizer)
    made = tokenize_silo(examples({"text": "the sum of"}), tokenizer, DataConfig(), max_length=9)
    whole = made.sequences[0].tolist()
    assert [*form.ids([said("the sum of")]), tokenizer.eos_token_id] == whole
    assert form.plain_ids("the sum of") == form.ids([said("the sum of")])


def test_chats_have_turns_as_training_wrote_them(chatty) -> None:
    form = PromptForm(prompt_format({"data.messages": "messages"}), chatty)
    turns = [said("a list", "system"), said("the sum"), said("of", "assistant"), said("array")]
    row = {"messages": [*turns, said("value", "assistant")]}
    made = tokenize_silo(examples(row), chatty, DataConfig(messages="messages"), max_length=64)
    ids, learnt = form.ids(turns), made.learnt[0].tolist()
    assert made.sequences[0].tolist()[: len(ids)] == ids
    assert learnt[len(ids)] and not learnt[len(ids) - 1]


def test_without_a_known_format_a_chat_template_writes_or_nothing_does(tokenizer, chatty) -> None:
    assert PromptForm({}, chatty).is_chat
    assert not PromptForm({}, tokenizer).is_chat


@pytest.mark.parametrize(
    ("turns", "values", "says"),
    [
        ([], {}, "empty"),
        ([said(" \n")], {}, "empty"),
        ([said("a", "system"), said("b")], {}, "no place"),
        ([said("a"), said("b", "assistant"), said("c")], {}, "no place"),
        ([said("a")], {"other": "x"}, "has the fields q, and not 'other'"),
        ([said("a")], {"q": "x"}, "given already"),
        ([said("a \ud800")], {}, "Unicode"),
        ([said("a")], {"q": "\ud800"}, "Unicode"),
    ],
)
def test_what_the_form_has_no_place_for_is_refused(tokenizer, turns, values, says) -> None:
    form = PromptForm(prompt_format({"data.prompt": "q"}), tokenizer)
    with pytest.raises(PromptError, match=says):
        form.ids(turns, values)


def test_chats_refuse_fields_and_a_missing_or_failing_template(tokenizer, chatty) -> None:
    form = prompt_format({"data.messages": "messages"})
    with pytest.raises(PromptError, match="no field 'input'"):
        PromptForm(form, chatty).ids([said("a")], {"input": "x"})
    with pytest.raises(PromptError, match="no chat template"):
        PromptForm(form, tokenizer)
    chatty.chat_template = chat_templates.FOLDED
    try:
        with pytest.raises(PromptError, match="roles must alternate"):
            PromptForm(form, chatty).ids([said("a"), said("b")])
    finally:
        chatty.chat_template = chat_templates.CHATML
