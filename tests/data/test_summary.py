"""The summary: every row of the source is accounted for, in one line of numbers."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from flower_split.config.data import DataConfig
from flower_split.data import SiloData, load_silo

LONG = "the silo holds the text and the trunk trains" + ", the cut is fixed" * 40


def load(
    tokenizer: PreTrainedTokenizerFast, path: Path, *, silos: int = 0, **fields: Any
) -> SiloData:
    return load_silo(
        DataConfig(path=str(path), **fields),
        tokenizer,
        partition_id=0 if silos else None,
        num_partitions=silos or None,
        max_length=16,
        seed=0,
    )


def test_everything_that_is_not_trained_on_is_in_the_line(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"text": f"silo {i}", "who": f"s{i % 5}"} for i in range(40)]
    rows[2]["text"] = " "
    rows[5]["text"] = LONG
    lines = [json.dumps(row) for row in rows]
    lines.insert(30, '{"text": "the patient')
    path = tmp_path / "silo.jsonl"
    path.write_text("\n".join(lines))
    options = {"bad_rows": "skip", "partitioner": "natural", "partition_by": "who"}
    data = load(tokenizer, path, silos=3, eval_fraction=0.25, **options)
    summary = data.summary
    assert (summary.rows, summary.own, summary.kept, summary.skipped) == (41, 8, 8, 1)
    assert summary.train.examples + summary.held_out.examples == 8
    assert summary.train.truncated + summary.held_out.truncated == 1
    assert summary.train.tokens == sum(map(len, data.train.sequences))
    line = summary.line()
    assert "\n" not in line
    for said in (
        f"41 rows read from {path}; ",
        "not taken of it: 2 of the 5 ids in column 'who', because there are 3 silos",
        "1 bad row skipped (line 31)",
        "8 are this silo's",
        "1 example cut off at 16 tokens",
        f"{summary.train.lost + summary.held_out.lost:,} tokens left out so",
        f"{summary.train.tokens} tokens, {summary.train.targets} of them with a loss",
        "held out: 2 examples in 2 sequences",
    ):
        assert said in line, line
    assert "patient" not in line

    whole = load(tokenizer, path, eval_fraction=0.0, max_examples=20, bad_rows="skip").summary
    assert (whole.rows, whole.own, whole.kept) == (41, 40, 20)
    assert "; 20 kept by data.max-examples; " in whole.line()
    assert whole.line().endswith("held out: nothing")


def test_rows_that_are_bad_on_their_way_to_tokens_are_counted_once(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "silo.jsonl"
    path.write_text('{"text": "one"}\n{"text": null}\nx\n{"text": 3}\n{"body": "x"}\n' * 2)
    summary = load(tokenizer, path, eval_fraction=0.0, bad_rows="skip").summary
    assert (summary.rows, summary.skipped, summary.train.examples) == (10, 8, 2)
    assert len(summary.skipped_at) == 5
    assert ", …)" in summary.line()


def test_a_long_plain_text_is_divided_and_none_of_it_is_lost(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    words = LONG * 20
    path = tmp_path / "book.txt"
    path.write_text(words)
    data = load(tokenizer, path, eval_fraction=0.0)
    ids = tokenizer(words.strip(), add_special_tokens=False)["input_ids"]
    found = [token for sequence in data.train.sequences for token in sequence.tolist()]
    assert found == [*ids, tokenizer.eos_token_id]
    assert {len(sequence) for sequence in data.train.sequences[:-2]} == {16}
    assert min(map(len, data.train.sequences)) >= 2
    summary = data.summary.train
    assert (summary.divided, summary.truncated) == (1, 0)
    assert summary.sequences == summary.examples == len(data.train) == -(-len(found) // 16)
    assert "1 example divided at 16 tokens" in data.summary.line()

    cut = load(tokenizer, path, eval_fraction=0.0, long_texts="cut").summary.train
    assert (cut.sequences, cut.divided, cut.truncated) == (1, 0, 1)
    assert cut.lost == len(found) - 16
    lines = tmp_path / "book.jsonl"
    lines.write_text(json.dumps({"text": words}))
    cut = load(tokenizer, lines, eval_fraction=0.0).summary.train
    assert (cut.sequences, cut.divided, cut.truncated) == (1, 0, 1)
    split = load(tokenizer, lines, eval_fraction=0.0, long_texts="split").summary.train
    assert split == summary


def test_sequences_of_a_single_long_text_are_held_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "book.txt"
    path.write_text(LONG * 20)
    whole = load(tokenizer, path, eval_fraction=0.0).train
    data = load(tokenizer, path, eval_fraction=0.25)
    found = [*data.train.sequences, *data.held_out.sequences]
    assert sorted(ids.tolist() for ids in found) == sorted(ids.tolist() for ids in whole.sequences)
    assert len(data.held_out) == round(0.25 * len(whole))
    assert data.summary.held_out.sequences == data.summary.held_out.examples == len(data.held_out)


def test_packed_rows_are_told_and_examples_are_counted_as_before(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "silo.jsonl"
    path.write_text('{"text": "silo"}\n' * 12)
    plain = load(tokenizer, path, eval_fraction=0.25)
    packed = load(tokenizer, path, eval_fraction=0.25, packing=True)
    assert packed.num_examples == plain.num_examples == 9
    assert len(packed.train) < 9 == len(plain.train)
    assert packed.summary.train == plain.summary.train
    assert f"packed into {len(packed.train)} rows" in packed.summary.line()
    assert len(packed.held_out) == 3
