"""Folders of files: one data set, or the splits that the files' names tell."""

import gzip
import json
from pathlib import Path

import pytest

from flower_split.config.data import DataConfig
from flower_split.data import load_examples, silo_examples
from flower_split.data.folders import read_folder, split_of
from flower_split.data.reading.bad_rows import BadRows
from flower_split.errors import DataError


def write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        path.write_text("text\n" + "".join(f"{text}\n" for text in texts))
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(texts))
    else:
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def texts(folder: Path, split: str = "train") -> list[str]:
    return [row["text"] for row in read_folder(folder, split)]


def test_files_of_several_kinds_are_one_data_set_in_the_order_of_their_names(
    tmp_path: Path,
) -> None:
    write(tmp_path / "b.csv", "three", "four")
    write(tmp_path / "a.jsonl", "one", "two")
    write(tmp_path / "c" / "d.jsonl.gz", "five")
    write(tmp_path / "e.txt", "six", "seven")
    (tmp_path / "README.md").write_text("# of the data")
    (tmp_path / ".hidden.jsonl").write_text("broken")
    examples = read_folder(tmp_path, "train")
    assert [row["text"] for row in examples] == [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
    ]
    assert examples.ignored == ("README.md",)
    assert examples.where(3) == f"{tmp_path / 'b.csv'}, line 3"
    assert examples.select([6]).where(0) == f"{tmp_path / 'e.txt'}, line 3"


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("test.jsonl", "test"),
        ("mine_dev.csv", "validation"),
        ("validation/part.jsonl", "validation"),
        ("eval.v2.jsonl", "test"),
        ("latest.jsonl", "train"),
        ("contest/trains.jsonl", "train"),
        ("test/train.jsonl", "train"),
    ],
)
def test_names_tell_splits(tmp_path: Path, path: str, split: str) -> None:
    assert split_of(tmp_path / path, tmp_path) == split


def test_a_split_of_the_folder_is_trained_on_and_another_held_out(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "one", "two")
    write(tmp_path / "valid.jsonl", "three")
    write(tmp_path / "test.jsonl", "four")
    assert texts(tmp_path) == ["one", "two"]
    assert read_folder(tmp_path, "train").ignored == ("test.jsonl", "valid.jsonl")
    assert texts(tmp_path, "dev") == ["three"]
    config = DataConfig(path=str(tmp_path), eval_split="validation")
    train, held = silo_examples(config, partition_id=None, num_partitions=None, seed=0)
    assert [[row["text"] for row in part] for part in (train, held)] == [["one", "two"], ["three"]]
    with pytest.raises(DataError, match="no file of the split 'extra'; its names tell 'test', "):
        texts(tmp_path, "extra")


def test_bad_rows_of_all_files_are_counted_with_their_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": \n')
    (tmp_path / "b.jsonl").write_text('[1]\n{"text": "two"}\n')
    bad = BadRows("skip")
    assert len(read_folder(tmp_path, "train", bad=bad)) == 2
    assert (bad.count, bad.places) == (2, ["a.jsonl, line 2", "b.jsonl, line 1"])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2"):
        read_folder(tmp_path, "train")


def test_folders_without_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no file that can be read: .*\.parquet"):
        load_examples(str(tmp_path))
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match="has no file that can be read"):
        load_examples(str(tmp_path))


def test_a_saved_data_set_is_read_and_named_where_it_is_inside(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    one = datasets.Dataset.from_list([{"text": "one"}])
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "several")
    examples, _ = load_examples(str(tmp_path / "one"))
    assert [row["text"] for row in examples] == ["one"]
    examples, _ = load_examples(str(tmp_path / "several"))
    assert (len(examples), examples.ignored) == (1, ("test",))
    with pytest.raises(DataError, match="has no split 'dev'; it has 'train', 'test'"):
        load_examples(str(tmp_path / "several"), split="dev")
    with pytest.raises(DataError, match="holds one, a data set that save_to_disk wrote"):
        load_examples(str(tmp_path))
    (tmp_path / "one" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="no whole folder of a saved data set"):
        load_examples(str(tmp_path / "one"))
