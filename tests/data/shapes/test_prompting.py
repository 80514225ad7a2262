"""Prompts of templates: what is filled in gets no loss, and what is absent is no fault."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from flower_split.config.data import DataConfig
from flower_split.data import Examples
from flower_split.data.reading.bad_rows import BadRows
from flower_split.data.sequences import TokenizedDataset
from flower_split.data.tokenizing import tokenize_silo
from flower_split.errors import ConfigError, DataError

ALPACA = "### Instruction:\n{instruction}\n{input}\n### Response:\n"
ROWS: list[dict[str, Any]] = [
    {"instruction": "Add", "input": "1 2", "output": "3"},
    {"instruction": "Greet", "input": "", "output": "Hi"},
    {"instruction": "Wave", "input": None, "output": "o/"},
    {"instruction": "Count", "output": "1"},
    {"instruction": "Say", "input": 7, "output": "seven"},
]


def tokenized(
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    bad: BadRows | None = None,
    **fields: Any,
) -> TokenizedDataset:
    examples = Examples.all_of(rows, origin="here")
    config = DataConfig(**fields)
    return tokenize_silo(examples, tokenizer, config, max_length=128, bad=bad)


def parts(tokenizer: PreTrainedTokenizerFast, data: TokenizedDataset) -> list[tuple[str, str]]:
    return [
        (tokenizer.decode(ids[:n]), tokenizer.decode(ids[n:]))
        for ids, n in zip(data.sequences, data.prompt_lengths, strict=True)
    ]


def test_alpacas_columns_and_an_empty_input(tokenizer: PreTrainedTokenizerFast) -> None:
    data = tokenized(tokenizer, ROWS, template=ALPACA, text="output")
    inputs = ["1 2", "", "", "", "7"]
    assert parts(tokenizer, data) == [
        (
            f"### Instruction:\n{row['instruction']}\n{given}\n### Response:\n",
            f"{row['output']}</s>",
        )
        for row, given in zip(ROWS, inputs, strict=True)
    ]


def test_a_template_with_the_target_in_it_learns_from_there_on(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = "Q: {instruction} {{sic}}\nA: {output}\n###"
    data = tokenized(tokenizer, ROWS[:1], template=template, text="output")
    assert parts(tokenizer, data) == [("Q: Add {sic}\nA: ", "3\n###</s>")]


def test_bos_stands_before_the_template(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    data = tokenized(bos_tokenizer, ROWS[:1], template="{instruction}:", text="output")
    assert parts(bos_tokenizer, data) == [("<s>Add:", "3</s>")]


def test_a_field_that_no_row_has_is_told(tokenizer: PreTrainedTokenizerFast) -> None:
    for bad in (None, BadRows("skip")):
        with pytest.raises(DataError, match="the field 'question', which none of the 5 examples"):
            tokenized(tokenizer, ROWS, bad, template="{question}{instruction}", text="output")


def test_an_absent_target_or_a_field_that_is_no_text_is_a_bad_row(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [
        *ROWS[:1],
        {"instruction": "Add", "output": " "},
        {"instruction": ["Add"], "output": "3"},
        {"instruction": "Add", "output": None},
        {"instruction": "\ud83d", "output": "3"},
    ]
    bad = BadRows("skip")
    assert len(tokenized(tokenizer, rows, bad, template=ALPACA, text="output")) == 1
    assert bad.places == [f"example {n}" for n in range(2, 6)]
    with pytest.raises(DataError, match="example 2: field 'output' is empty text"):
        tokenized(tokenizer, rows, template=ALPACA, text="output")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("plain", "names no field"),
        ("{}", "braces that name no field"),
        ("{a!r}", "braces that name no field"),
        ("{a:>3}", "braces that name no field"),
        ("{a", "is not valid: expected '}'"),
        ("a}", "is not valid: Single '}'"),
    ],
)
def test_templates_are_checked(template: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DataConfig(template=template)


def test_a_template_reads_no_attributes(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"a.__class__": "x", "text": "y"}]
    data = tokenized(tokenizer, rows, template="{a.__class__}")
    assert parts(tokenizer, data) == [("x", "y</s>")]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a", "template": "{b}"},
        {"prompt": "a", "messages": "b"},
        {"long_texts": "split", "prompt": "a"},
        {"long_texts": "split", "messages": "a"},
        {"eval_split": "train"},
        {"encoding": "base64"},
        {"encoding": "utf-9"},
        {"bad_rows": "ignore"},
        {"long_texts": "wrap"},
        {"split": ""},
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.[a-z-]+"):
        DataConfig(**fields)  # type: ignore[arg-type]
