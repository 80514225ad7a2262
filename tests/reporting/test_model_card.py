"""The model card tells how prompts are written, in a form that nothing in a name breaks out of."""

import re

import pytest

from flower_split.reporting.model_card import ModelCard


def card(**fields: object) -> str:
    usual = {
        "base_model": "qwen",
        "bottom_layers": 1,
        "top_layers": 1,
        "trunk_adapters": "federated",
        "strategy": "fedavg",
        "rounds": 2,
        "rank": 8,
        "alpha": 16.0,
    }
    return ModelCard(**{**usual, **fields}).render()  # type: ignore[arg-type]


FORMAT = {"template": "BOS{question}\n{answer}EOS", "prompt": "{question}\n", "separator": "\n"}


def test_the_format_and_code_that_uses_it() -> None:
    text = card(prompt_format=FORMAT)
    assert r"- template: `BOS{question}\n{answer}EOS`" in text
    assert r"- separator: `\n`" in text
    assert r"prompt = tokenizer('Your question\n', return_tensors=" in text
    assert "base = 'qwen'" in text


def test_chats_are_written_by_the_tokenizers_template() -> None:
    text = card(prompt_format={"template": "{turns}", "written_by": "the chat template"})
    assert "tokenizer.apply_chat_template(" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    compile(code, "card", "exec")


def test_plain_texts_have_no_prompt() -> None:
    text = card(prompt_format={"template": "BOS{text}EOS", "prompt": "", "separator": ""})
    assert "- separator: none" in text
    assert "tokenizer('The beginning of'" in text


def test_a_packages_model_is_found_by_its_name() -> None:
    text = card(base_model="flower_split.quickstart:base", prompt_format=FORMAT)
    assert "base = str(resolve_source('flower_split.quickstart:base').folder)" in text


@pytest.mark.parametrize("form", [{}, {"template": "{text}", "label": "label"}])
def test_other_tasks_and_unknown_formats_have_no_code(form: dict[str, str]) -> None:
    text = card(prompt_format=form, task="sequence-classification", labels="a, b")
    assert "```" not in text
    assert ("## Prompt format" in text) == bool(form)


def test_a_fields_name_stays_on_its_line() -> None:
    nasty = {"template": "BOS{a`b\n# heading}EOS", "prompt": "{a`b\n# heading}", "separator": "\n"}
    text = card(prompt_format=nasty)
    assert "\n# heading" not in text
