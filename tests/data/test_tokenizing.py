"""Tokenising: exactly the target's tokens get a loss."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from flower_split.data import PROMPT_SEPARATOR, Examples, TokenizedDataset, tokenize
from flower_split.errors import DataError

EOS = 2
BOS = 1


def pairs(*rows: tuple[str, str]) -> Examples:
    return Examples.all_of([{"ask": a, "text": t} for a, t in rows], origin="here")


def ids(dataset: TokenizedDataset) -> list[list[int]]:
    return [sequence.tolist() for sequence in dataset.sequences]


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_plain_text_ends_with_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = tokenize(pairs(("", "the silo")), tokenizer, text="text", max_length=32)
    assert ids(dataset) == [[*encode(tokenizer, "the silo"), EOS]]
    assert dataset.prompt_lengths == (0,)
    assert (dataset.pad_id, dataset.truncated, dataset.dropped) == (0, 0, 0)


def test_a_prompt_gets_no_loss(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = tokenize(
        pairs(("the cut", "is fixed")), bos_tokenizer, text="text", prompt="ask", max_length=32
    )
    head = [BOS, *encode(bos_tokenizer, "the cut" + PROMPT_SEPARATOR)]
    target = encode(bos_tokenizer, "is fixed")
    assert ids(dataset) == [[*head, *target, EOS]]
    assert dataset.prompt_lengths == (len(head),)
    assert dataset.num_targets == len(target) + 1


def test_generation_starts_with_the_trained_tokens(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = tokenize(
        pairs(("a trunk", "trains")), bos_tokenizer, text="text", prompt="ask", max_length=32
    )
    prompt = bos_tokenizer("a trunk" + PROMPT_SEPARATOR)["input_ids"]
    assert ids(dataset)[0][: dataset.prompt_lengths[0]] == prompt


def test_bos_of_plain_text_gets_no_loss(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = tokenize(pairs(("", "top")), bos_tokenizer, text="text", max_length=32)
    assert ids(dataset)[0][0] == BOS
    assert dataset.prompt_lengths == (1,)


def test_no_special_token_is_needed(bare_tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = tokenize(pairs(("", "the silo")), bare_tokenizer, text="text", max_length=32)
    assert ids(dataset) == [encode(bare_tokenizer, "the silo")]
    assert dataset.pad_id == 0


def test_eos_pads_where_there_is_no_pad_token(tokenizer: PreTrainedTokenizerFast) -> None:
    unpadded = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>"
    )
    assert tokenize(pairs(("", "top")), unpadded, text="text", max_length=8).pad_id == EOS


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(*[st.text(min_size=1, max_size=20).filter(str.strip)] * 2), min_size=1, max_size=5
    ),
    max_length=st.integers(2, 40),
    with_prompt=st.booleans(),
)
def test_what_is_kept_has_a_target_and_is_a_prefix(
    bos_tokenizer: PreTrainedTokenizerFast,
    rows: list[tuple[str, str]],
    max_length: int,
    with_prompt: bool,
) -> None:
    expected, cut = [], 0
    for ask, text in rows:
        head = [BOS, *(encode(bos_tokenizer, ask + "\n") if with_prompt else [])]
        whole = [*head, *encode(bos_tokenizer, text), EOS]
        if len(head) < max_length:
            expected.append((whole[:max_length], len(head)))
            cut += len(whole) > max_length
    prompt = "ask" if with_prompt else ""

    def run() -> TokenizedDataset:
        return tokenize(
            pairs(*rows), bos_tokenizer, text="text", prompt=prompt, max_length=max_length
        )

    if not expected:
        with pytest.raises(DataError, match=r"has a target token within train\.max-length"):
            run()
        return
    dataset = run()
    assert list(zip(ids(dataset), dataset.prompt_lengths, strict=True)) == expected
    assert (dataset.truncated, dataset.dropped) == (cut, len(rows) - len(expected))
    assert dataset.num_targets == sum(len(s) - n for s, n in expected)


def test_what_is_cut_and_dropped_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pairs(("ab", "cd" * 9), ("x" * 40, "cd"), ("a", "b"))
    dataset = tokenize(rows, tokenizer, text="text", prompt="ask", max_length=8)
    assert (len(dataset), dataset.truncated, dataset.dropped) == (2, 1, 1)


def test_a_single_token_is_no_sequence(bare_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="none of 1 examples has a target token"):
        tokenize(pairs(("", "a")), bare_tokenizer, text="text", max_length=8)


def test_a_missing_field_names_the_example(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"here, example 1: no field 'mr'; .* 'ask', 'text'"):
        tokenize(pairs(("a", "b")), tokenizer, text="text", prompt="mr", max_length=8)


def test_no_examples_are_no_sequences(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = tokenize(pairs(), tokenizer, text="text", prompt="ask", max_length=8)
    assert (len(dataset), dataset.num_targets) == (0, 0)
