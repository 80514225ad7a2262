"""Special tokens around a text: each once, whoever wrote them, and ids that the model has."""

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from flower_split.data import Examples, encode_prompt, tokenize
from flower_split.data.batching import collate
from flower_split.errors import DataError
from flower_split.segments import TableSizes

PAD, BOS, EOS = 0, 1, 2
TEMPLATE = "{% for m in messages %}{{ '<s>' + m['content'] + '</s>' }}{{ '\n' }}{% endfor %}"


def known(tokens: int, positions: int | None = None) -> TableSizes:
    return TableSizes(tokens=tokens, positions=positions)


def sequence(tokenizer: PreTrainedTokenizerFast, text: str, ask: str = "") -> list[int]:
    rows = Examples.all_of([{"ask": ask, "text": text}], origin="here")
    dataset = tokenize(rows, tokenizer, text="text", prompt="ask" if ask else "", max_length=64)
    return list(dataset.sequences[0].tolist())


def plain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        (" hello ", " hello "),
        ("<s> hello </s>", " hello "),
        ("<s> hello ", " hello "),
        (" hello </s>", " hello "),
        ("<s><s>hello</s></s>", "hello"),
        (" \n<s>hello</s>", "hello"),
        ("<s>one</s><s>two</s>", "one</s><s>two"),
        ("<s>hello</s> and more", "hello</s> and more"),
        ("say <s> twice", "say <s> twice"),
        ("<s></s>", ""),
    ],
)
def test_a_text_that_carries_them_gets_no_second_ones(
    text: str, inner: str, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    if not inner:
        assert sequence(bos_tokenizer, text) == [BOS, EOS]
    else:
        assert sequence(bos_tokenizer, text) == [BOS, *plain(bos_tokenizer, inner), EOS]


def test_what_a_template_writes_behind_the_end_stays(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.chat_template = TEMPLATE
    messages = [{"role": "user", "content": "the silo"}, {"role": "assistant", "content": "trains"}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    assert text == "<s>the silo</s>\n<s>trains</s>\n"
    assert sequence(tokenizer, text) == plain(tokenizer, text)


@pytest.mark.parametrize(
    ("ask", "text"),
    [("who", "me"), ("<s>who", "me"), ("who", "<s>me</s>"), ("<s>who", "<s>me</s>")],
)
def test_prompt_and_target_are_joined_into_one_sequence(
    ask: str, text: str, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    head = [BOS, *plain(bos_tokenizer, "who\n")]
    assert sequence(bos_tokenizer, text, ask) == [*head, *plain(bos_tokenizer, "me"), EOS]
    assert encode_prompt(bos_tokenizer, ask + "\n") == head


def test_a_tokenizer_that_adds_none_takes_the_texts_own(
    tokenizer: PreTrainedTokenizerFast, bare_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert sequence(tokenizer, "<s>hello</s>") == [BOS, *plain(tokenizer, "hello"), EOS]
    assert sequence(bare_tokenizer, "<s>hello</s>") == plain(bare_tokenizer, "<s>hello</s>")


def test_it_is_counted(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["<s>a", "b</s>", "<s>c</s>", "d"]
    rows = Examples.all_of([{"text": text} for text in texts], origin="here")
    assert tokenize(rows, bos_tokenizer, text="text", max_length=8).carried == 3


def test_padding_beyond_the_table_is_put_into_masked_places_by_another_id(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    size = len(bos_tokenizer)
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<added>"})
    assert tokenizer.pad_token_id == size
    rows = Examples.all_of([{"text": "a"}, {"text": "a longer text"}], origin="here")
    dataset = tokenize(rows, tokenizer, text="text", max_length=64, tables=known(size))
    batch = collate(dataset, [0, 1])
    assert int(batch["input_ids"].max()) < size
    assert (batch["attention_mask"] == 0).any()
    assert set(batch["labels"][batch["attention_mask"] == 0].tolist()) == {-100}
    assert tokenize(rows, tokenizer, text="text", max_length=64).pad_id == size


def test_other_ids_beyond_the_table_are_refused_with_both_sizes(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    size = len(bos_tokenizer)
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    fine, bad = {"text": "no tool"}, {"text": "a <tool> is used"}
    for rows in ([fine], [fine, bad]):
        examples = Examples.all_of(rows, origin="here")
        if bad not in rows:
            tokenize(examples, tokenizer, text="text", max_length=64, tables=known(size))
            continue
        with pytest.raises(DataError) as caught:
            tokenize(examples, tokenizer, text="text", max_length=64, tables=known(size))
        said = str(caught.value)
        assert said.startswith(f"here, example 2: the token id {size} is beyond the model's")
        assert f"has {size} rows; the tokenizer has {size + 1} tokens" in said
        assert "is used" not in said


@pytest.mark.parametrize("role", ["bos_token", "eos_token"])
def test_an_added_end_beyond_the_table_is_refused(
    role: str, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    size = len(bos_tokenizer)
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.add_special_tokens({role: "<new>"})
    text = "<new> a" if role == "bos_token" else "a"
    rows = Examples.all_of([{"text": text}], origin="here")
    with pytest.raises(DataError, match=f"the token id {size} is beyond"):
        tokenize(rows, tokenizer, text="text", max_length=64, tables=known(size))


def test_a_row_that_is_longer_than_the_models_positions_is_refused(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = Examples.all_of([{"text": "a"}, {"text": "x" * 30}], origin="here")
    size = len(bos_tokenizer)
    with pytest.raises(DataError, match=r"example 2 has 32 tokens.*set train\.max-length to 16"):
        tokenize(rows, bos_tokenizer, text="text", max_length=64, tables=known(size, 16))
    cut = tokenize(rows, bos_tokenizer, text="text", max_length=16, tables=known(size, 16))
    assert len(cut) == 2
