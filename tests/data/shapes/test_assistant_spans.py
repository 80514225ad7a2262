"""The assistant's spans: exactly what a model would write by itself, or no span at all."""

from pathlib import Path
from typing import Any

import chat_templates as shapes
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from flower_split.config.data import DataConfig
from flower_split.data import Examples
from flower_split.data.reading.bad_rows import BadRows
from flower_split.data.tokenizing import tokenize_silo
from flower_split.errors import DataError

SYSTEM = {"role": "system", "content": "Be kind."}
SHORT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A silo."}]
LONG = [
    SYSTEM,
    *SHORT,
    {"role": "user", "content": "A silo."},
    {"role": "assistant", "content": "Yes, as I said:\n\n A silo. "},
]
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": None}}}],
}
WITH_TOOLS = [SHORT[0], CALL, {"role": "tool", "content": "7"}, {**SHORT[1], "content": "Seven"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def tokenizer_of(template: str, *, trimmed: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template, which counts blanks to words or not."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trimmed)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", *shapes.SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["a silo. Yes, as I said\n\n", "Who are you? : A silo."], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=shapes.SPECIAL,
        chat_template=template,
    )


def learnt(template: str, messages: Any, tools: Any = None, *, trimmed: bool = True) -> list[str]:
    """The text of every run of tokens with a loss, and that the ids are the template's."""
    tokenizer = tokenizer_of(template, trimmed=trimmed)
    row = {"messages": messages, **({"tools": tools} if tools else {})}
    dataset = tokenize_silo(
        Examples.all_of([row], origin="here"),
        tokenizer,
        DataConfig(messages="messages"),
        max_length=4000,
    )
    ids, flags = dataset.sequences[0].tolist(), dataset.learnt[0].tolist()
    assert ids == tokenizer.apply_chat_template(messages, tools=tools)["input_ids"]
    runs, run = list[str](), list[int]()
    for token, flag in [*zip(ids, flags, strict=True), (0, 0)]:
        if flag:
            run.append(token)
        elif run:
            runs.append(tokenizer.decode(run))
            run = []
    assert dataset.num_targets == sum(flags)
    return runs


EXPECTED = [
    (shapes.CHATML, LONG, ["A silo.<|im_end|>", "Yes, as I said:\n\n A silo. <|im_end|>"]),
    (shapes.FOLDED, LONG, [" A silo. </s>", " Yes, as I said:\n\n A silo. </s>"]),
    (shapes.HEADERS, LONG, ["A silo.<|eot|>", "Yes, as I said:\n\n A silo.<|eot|>"]),
    (shapes.LINES, LONG, [" A silo.</s>", " Yes, as I said:\n\n A silo. </s>"]),
    (
        shapes.PLAIN_ENDS,
        LONG,
        ["A silo.\n### end", "Yes, as I said:\n\n A silo. \n### end"],
    ),
    (
        shapes.THINKING,
        LONG,
        ["A silo.<|im_end|>", "<think>\n\n</think>\n\nYes, as I said:\n\n A silo. <|im_end|>"],
    ),
    (shapes.OPENED, LONG[1:], ["A silo.</s>", "Yes, as I said:\n\n A silo. </s>"]),
    (shapes.OPENED, [SHORT[0], {"role": "assistant", "content": "<b>"}], ["<b></s>"]),
    (shapes.MOVED, LONG[1:], ["A silo.</s>", "Yes, as I said:\n\n A silo. </s>"]),
    (shapes.LAST_ONLY, SHORT, ["A silo.</s>"]),
]


@pytest.mark.parametrize("trimmed", [True, False])
@pytest.mark.parametrize(("template", "messages", "expected"), EXPECTED)
def test_the_spans_are_what_the_assistant_writes(
    template: str, messages: Any, expected: list[str], trimmed: bool
) -> None:
    assert learnt(template, messages, trimmed=trimmed) == expected


def test_thoughts_of_the_last_turn_are_learnt_and_those_of_earlier_ones_are_not_there() -> None:
    thought = "<think>\nwho am I\n</think>\n\nA silo."
    messages = [*SHORT[:1], {"role": "assistant", "content": thought}]
    assert learnt(shapes.THINKING, messages) == [thought + "<|im_end|>"]
    twice = [*messages, *messages]
    assert learnt(shapes.THINKING, twice) == ["A silo.<|im_end|>", thought + "<|im_end|>"]


def test_calls_of_tools_are_learnt_and_their_answers_are_not() -> None:
    call = '\n<tool_call>\n{"name": "f", "arguments": {"x": null}}\n</tool_call><|im_end|>'
    assert learnt(shapes.CHATML, WITH_TOOLS, TOOLS) == [call, "Seven<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "messages", "tools", "said"),
    [
        (shapes.WITHIN, WITH_TOOLS, None, "message 3 into a turn of the assistant"),
        (shapes.LINES, [*WITH_TOOLS[:1], {**CALL, "content": ""}], None, "the tool calls of mess"),
        (shapes.LINES, SHORT, TOOLS, r"does not write the tools: .*data\.tools = ''"),
        (shapes.UNSEEN, LONG, None, "does not write message 1"),
        (shapes.WITHIN, [SHORT[0], {**CALL, "content": "Let me see"}], None, "the words beside"),
        (shapes.MOVED, [*SHORT, *SHORT], TOOLS, "what comes before turn 2 .* otherwise"),
        (shapes.LAST_ONLY, LONG[1:], None, "ends turn 2 of the chat otherwise"),
        (shapes.UNPROMPTED, SHORT, None, "has no generation prompt, and writes something"),
        (shapes.SILENT, SHORT, None, "leaves turn 2 of the chat out"),
        (shapes.CHATML, SHORT[::-1], None, "begins with the assistant"),
        (shapes.FOLDED, [*SHORT, SHORT[1]], None, r"TemplateError: roles must alternate\)"),
    ],
)
def test_where_no_span_is_certain_the_chat_is_refused(
    template: str, messages: Any, tools: Any, said: str
) -> None:
    with pytest.raises(DataError, match=f"here, example 1: .*{said}"):
        learnt(template, messages, tools)


def test_what_a_marked_template_leaves_out_is_refused_too() -> None:
    unseen = shapes.MARKED.replace("in messages", "in messages if m.role != 'system'")
    assert len(learnt(unseen, LONG[1:])) == 2
    with pytest.raises(DataError, match="does not write message 1"):
        learnt(unseen, LONG)
    with pytest.raises(DataError, match="does not write the tools"):
        learnt(shapes.MARKED, SHORT, TOOLS)


def test_marks_of_the_template_count_first() -> None:
    assert learnt(shapes.MARKED, LONG) == learnt(shapes.CHATML, LONG)
    first = [{"role": "assistant", "content": "Hello"}, *SHORT]
    assert learnt(shapes.MARKED, first) == ["Hello<|im_end|>", "A silo.<|im_end|>"]


WORDS = st.text(st.sampled_from("aQzJv<|>18 \n.é:"), min_size=1, max_size=8).filter(
    lambda words: words == words.lstrip() and bool(words)
)


def test_a_token_of_header_and_words_is_learnt_as_marks_have_it() -> None:
    messages = [SHORT[0], {"role": "assistant", "content": "\n A"}]
    assert (
        learnt(shapes.CHATML, messages) == learnt(shapes.MARKED, messages) == ["\n\n A<|im_end|>"]
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(turns=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
@pytest.mark.parametrize(
    ("template", "end"),
    [(shapes.CHATML, "<|im_end|>"), (shapes.HEADERS, "<|eot|>"), (shapes.LINES, "</s>")],
)
def test_any_words_are_found(template: str, end: str, turns: list[tuple[str, str]]) -> None:
    messages = [
        {"role": role, "content": words}
        for turn in turns
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
    written = [answer.strip() if template == shapes.HEADERS else answer for _, answer in turns]
    lead = " " if template == shapes.LINES else ""
    assert learnt(template, messages) == [lead + words + end for words in written]


def test_bad_chats_are_counted() -> None:
    rows = [{"messages": SHORT}, {"messages": SHORT[:1]}, {"messages": []}]
    bad = BadRows("skip")
    dataset = tokenize_silo(
        Examples.all_of(rows, origin="here"),
        tokenizer_of(shapes.CHATML),
        DataConfig(messages="messages"),
        max_length=64,
        bad=bad,
    )
    assert (len(dataset), bad.count, bad.places) == (1, 2, ["example 2", "example 3"])


def test_a_chat_that_is_cut_before_the_assistant_is_dropped() -> None:
    rows = [{"messages": SHORT}, {"messages": [{**SHORT[0], "content": "x" * 90}, SHORT[1]]}]
    dataset = tokenize_silo(
        Examples.all_of(rows, origin="here"),
        tokenizer_of(shapes.CHATML),
        DataConfig(messages="messages"),
        max_length=32,
    )
    assert (len(dataset), dataset.num_examples, dataset.dropped, dataset.truncated) == (1, 1, 1, 0)


TRL_TEMPLATES = ["llama3", "gemma3", "phi3", "qwen2_5", "deepseekv3", "cohere"]


@pytest.mark.parametrize("name", TRL_TEMPLATES)
def test_marks_that_others_set_in_real_templates_are_found_without_them(name: str) -> None:
    """TRL has real templates twice, without marks and with them.

    Its marks hold the header and what is behind the end of a turn too, which no model writes.
    """
    trl = pytest.importorskip("trl")
    folder = Path(trl.__file__).parent / "chat_templates"
    if not (folder / f"{name}_training.jinja").is_file():
        pytest.skip("another version of TRL")
    plain, marked = (
        (folder / f"{name}{kind}.jinja").read_text(encoding="utf-8") for kind in ("", "_training")
    )
    messages = LONG[1:]
    found, expected = learnt(plain, messages), learnt(marked, messages)
    assert len(found) == 2
    for own, theirs in zip(found, expected, strict=True):
        before, _, behind = theirs.partition(own)
        assert own in theirs
        assert before.strip() in ("", "<\uff5cAssistant\uff5c>")
        assert behind.strip() in ("", "</s>")
