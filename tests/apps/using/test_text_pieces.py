"""Pieces of text: together what the tokenizer makes of all tokens at once."""

import pytest

from flower_split.apps.using.text_pieces import TextPieces


def decode_bytes(ids):
    return bytes(ids).decode(errors="replace")


def told(pieces: TextPieces, content: bytes) -> list[str]:
    return [piece for byte in content if (piece := pieces.add([byte]))] + [pieces.end()]


def test_a_character_is_not_told_before_its_last_byte() -> None:
    pieces = TextPieces(decode_bytes)
    said = told(pieces, "a é 語 end".encode())
    assert "".join(said) == "a é 語 end" == pieces.text
    assert not any("\N{REPLACEMENT CHARACTER}" in one for one in said)


def test_bytes_that_are_no_character_are_told_at_the_end() -> None:
    said = told(TextPieces(decode_bytes), b"a\xe8")
    assert said == ["a", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("stop", "heard"),
    [
        (("\n\n",), "one\ntwo"),
        (("two",), "one\n"),
        (("three", "ne"), "o"),
        (("absent",), "one\ntwo\n\nthree"),
    ],
)
def test_a_stop_text_ends_the_answer_and_no_part_of_it_is_told(stop, heard) -> None:
    pieces = TextPieces(decode_bytes, stop=stop)
    assert "".join(told(pieces, b"one\ntwo\n\nthree")) == heard == pieces.text
    assert pieces.is_stopped == (stop != ("absent",))


def test_what_goes_on_begins_where_the_prompt_ended() -> None:
    pieces = TextPieces(lambda ids: " ".join(map(str, ids)), before=[1, 2])
    assert pieces.add([3]) + pieces.add([4]) == " 3 4"
