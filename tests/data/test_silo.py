"""A silo's data from end to end."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flower_split.config.sections import DataConfig
from flower_split.data import SiloData, load_silo, silo_examples, train_batches
from flower_split.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "silo.jsonl"
    rows = [{"ask": f"who is {i}", "text": f"silo {i}", "who": f"s{i % 3}"} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def load(tokenizer: PreTrainedTokenizerFast, silo: int | None = 0, **options: Any) -> SiloData:
    return load_silo(
        DataConfig(**options),
        tokenizer,
        partition_id=silo,
        num_partitions=None if silo is None else 3,
        max_length=64,
        seed=0,
    )


def texts(data: SiloData, tokenizer: PreTrainedTokenizerFast) -> tuple[list[str], list[str]]:
    train, held = (
        [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in part.sequences]
        for part in (data.train, data.held_out)
    )
    return train, held


def test_three_silos_share_a_file_without_overlap(
    file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    parts = [
        texts(load(tokenizer, silo, path=str(file), eval_fraction=0.2), tokenizer)
        for silo in range(3)
    ]
    assert [(len(train), len(held)) for train, held in parts] == [(8, 2)] * 3
    everything = [text for train, held in parts for text in [*train, *held]]
    assert sorted(everything) == sorted(f"silo {i}" for i in range(30))


def test_everything_is_the_same_again(file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    options = {"path": str(file), "prompt": "ask", "max_examples": 5}
    first, second = (texts(load(tokenizer, 1, **options), tokenizer) for _ in range(2))
    assert first == second
    assert len(first[0]) + len(first[1]) == 5


def test_without_a_partition_id_all_data_is_the_silos_own(
    file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = load(tokenizer, None, path=str(file), eval_fraction=0.1)
    assert (data.num_examples, len(data.held_out)) == (27, 3)
    with pytest.raises(DataError, match=r"'natural' needs to know which silo .*partition-id"):
        load(tokenizer, None, path=str(file), partitioner="natural", partition_by="who")
    with pytest.raises(DataError, match="partition-id is 0 and num-partitions is None"):
        silo_examples(DataConfig(path=str(file)), partition_id=0, num_partitions=None, seed=0)


def test_eval_path_is_evaluated_whole_and_nothing_held_out(
    file: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    held = tmp_path / "held.txt"
    held.write_text("one\n\ntwo")
    data = load(tokenizer, path=str(file), eval_path=str(held))
    assert data.num_examples == 10
    assert texts(data, tokenizer)[1] == ["one", "two"]
    with pytest.raises(DataError, match=r"there is no file .*absent\.txt"):
        load(tokenizer, path=str(file), eval_path=str(tmp_path / "absent.txt"))


def test_a_split_of_what_has_none_is_refused_and_never_the_whole(
    file: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = tmp_path / "splits"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n' * 3)
    with pytest.raises(DataError, match=r"silo\.jsonl: has no splits, and so no 'test'"):
        load(tokenizer, path=str(file), eval_split="test")
    with pytest.raises(DataError, match=r"list: has no splits, and so no 'test'"):
        silo_examples(
            DataConfig(eval_split="test"),
            partition_id=None,
            num_partitions=None,
            seed=0,
            source=[{"text": "a"}],
        )
    data = load(tokenizer, None, path=str(file), eval_path=str(folder), eval_split="test")
    assert texts(data, tokenizer)[1] == ["test"] * 3
    data = load(tokenizer, None, path=str(folder), split="test", eval_split="train")
    assert texts(data, tokenizer) == (["test"] * 3, ["train"] * 3)


def test_nothing_need_be_held_out(file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = load(tokenizer, path=str(file), eval_fraction=0.0)
    assert (data.num_examples, len(data.held_out)) == (10, 0)


def test_a_function_that_partitions_is_not_partitioned_again(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("data_of_own_silos")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.rows = lambda partition_id: [  # type: ignore[attr-defined]
        {"text": f"{partition_id}-{i}"} for i in range(6)
    ]
    train, held = texts(load(tokenizer, 1, path="data_of_own_silos:rows"), tokenizer)
    assert sorted([*train, *held]) == [f"1-{i}" for i in range(6)]


def test_rows_in_memory_are_a_source(tokenizer: PreTrainedTokenizerFast) -> None:
    data = load_silo(
        DataConfig(eval_fraction=0.5),
        tokenizer,
        partition_id=None,
        num_partitions=None,
        max_length=16,
        seed=0,
        source=[{"text": "one"}, {"text": "two"}],
    )
    assert sorted(text for part in texts(data, tokenizer) for text in part) == ["one", "two"]


def test_a_broken_line_is_named_from_end_to_end(
    file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    file.write_text(file.read_text() + '\n{"ask": "who", "body": "x"}\n')
    with pytest.raises(DataError, match=r"silo\.jsonl, line 31: no field 'text'; .* 'ask', 'body'"):
        load(tokenizer, None, path=str(file), eval_fraction=0.0)


@pytest.mark.slow
def test_the_core_works_without_the_extra(file: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['datasets'] = sys.modules['flwr_datasets'] = None\n"
        "from flower_split.config.sections import DataConfig\n"
        "from flower_split.data import silo_examples\n"
        f"config = DataConfig(path={str(file)!r})\n"
        "train, held = silo_examples(config, partition_id=2, num_partitions=3, seed=0)\n"
        "print(len(train), len(held))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["9", "1"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data folder")
def test_e2e_with_a_pretrained_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "stories260K")
    folder = SHARED / "datasets" / "e2e_nlg"
    config = DataConfig(
        path=str(folder / "train.jsonl"), eval_path=str(folder / "valid.jsonl"), prompt="mr"
    )
    data = load_silo(config, tokenizer, partition_id=0, num_partitions=3, max_length=256, seed=0)
    assert (data.num_examples, len(data.held_out), data.train.dropped) == (667, 200, 0)
    rows = [json.loads(line) for line in (folder / "valid.jsonl").read_text().splitlines()]
    held = data.held_out
    for row, ids, prompt in zip(rows, held.sequences, held.prompt_lengths, strict=True):
        assert ids[:prompt].tolist() == tokenizer(row["mr"] + "\n")["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[prompt:-1]).strip() == row["text"].strip()
    batch = next(iter(train_batches(data.train, 16, seed=0, silo=0, round_number=1)))
    assert batch["input_ids"].shape[0] == 16
    assert ((batch["labels"] == -100) | (batch["labels"] == batch["input_ids"])).all()
